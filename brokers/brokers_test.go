package brokers_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/brokers"
)

func TestNew(t *testing.T) {
	for _, name := range brokers.Names() {
		b, err := brokers.New(name, brokers.Config{})
		if err != nil || b.Name() != name {
			t.Errorf("%s: %v, %v", name, b, err)
		}
		orders, err := brokers.Book(name)
		if err != nil || orders.Broker.Name() != name {
			t.Errorf("the order book of %s: %v, %v", name, orders.Broker, err)
		}
	}
	if b, err := brokers.Book("acme"); err == nil {
		t.Errorf("the order book of acme: %v", b)
	}
	if b, err := brokers.New("acme", brokers.Config{}); err == nil {
		t.Errorf("acme: %v", b)
	}
}

// TestPlaces checks that each file in README.md's table exists for each broker and contains its name.
func TestPlaces(t *testing.T) {
	readme := read(t, "brokers/README.md")
	_, rest, begins := strings.Cut(readme, "<!-- places -->")
	table, _, ends := strings.Cut(rest, "<!-- /places -->")
	files := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(column(table, 1), -1)
	if !begins || !ends || len(files) < 20 {
		t.Fatalf("README.md has %d files in its table", len(files))
	}
	for _, name := range brokers.Names() {
		for _, file := range files {
			path := strings.ReplaceAll(file[1], "<name>", name)
			text := read(t, path)
			if !strings.Contains(path, name) && !strings.Contains(strings.ToLower(text), name) {
				t.Errorf("%s does not mention %s", path, name)
			}
		}
	}
}

// TestSuites checks that each broker has what README.md demands of its tests.
func TestSuites(t *testing.T) {
	for _, name := range brokers.Names() {
		text := read(t, "brokers/"+name+"/"+name+"_test.go") + read(t, "brokers/"+name+"/book_test.go")
		for _, want := range []string{
			"brokertest.Run(", "func FuzzNormalize(", "func FuzzVerify(", "Members:", "Change:", "brokertest.RunBook(",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the tests of %s have no %s", name, want)
			}
		}
		official := read(t, "brokers/"+name+"/testdata/genuine/official.json")
		if read(t, "deploy/samples/"+name+".json") != official {
			t.Errorf("deploy/samples/%s.json is not the official sample", name)
		}
	}
}

// TestTable checks that the README has a row of each broker, with no empty cell.
func TestTable(t *testing.T) {
	readme := read(t, "README.md")
	for _, name := range brokers.Names() {
		row := regexp.MustCompile(`(?im)^\| ` + name + ` (\| [^|\s][^|]*){5}\|$`)
		if !row.MatchString(readme) {
			t.Errorf("README.md has no full row of %s in the table of brokers", name)
		}
	}
}

// column returns a column of a table in Markdown.
func column(table string, n int) string {
	var cells []string
	for line := range strings.Lines(table) {
		if row := strings.Split(line, "|"); len(row) > n {
			cells = append(cells, row[n])
		}
	}
	return strings.Join(cells, "\n")
}

// read returns a file of the repository.
func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
