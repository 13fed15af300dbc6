package main

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
)

// injectedByKubernetes matches what Kubernetes sets in every pod beside a Service called postbridge.
const injectedByKubernetes = `^POSTBRIDGE_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`

// checkNames refuses names that mean nothing: a misspelt setting would otherwise be a silent default.
func checkNames(settings map[string]string) error {
	injected := regexp.MustCompile(injectedByKubernetes)
	known := settingNames()
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		switch {
		case slices.Contains(known, name) || injected.MatchString(name):
		default:
			return misuse("%s: there is no such setting; %s", name, suggestion(name, known))
		}
	}
	return nil
}

func settingNames() []string {
	fields := reflect.VisibleFields(reflect.TypeFor[config]())
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = settingName(f)
	}
	return names
}

func settingName(f reflect.StructField) string { return envPrefix + f.Tag.Get("env") }

// suggestion is what to do: mostly it is one or two letters that are wrong.
func suggestion(name string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		if d := editDistance(name, k); d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return "unset it"
	}
	return "did you mean " + best + "?"
}

// editDistance counts the letters to insert, remove or change between a and b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
