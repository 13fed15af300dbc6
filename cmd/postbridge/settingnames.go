package main

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
)

// serviceLink matches NAME=value of the service links that Kubernetes injects into a pod for a Service whose name
// starts with postbridge, such as postbridge-nats. No setting has such a name. POSTBRIDGE_NATS_PORT could be a misspelt
// setting, so its value has to be that of a Service, too: tcp://10.0.0.1:4222.
const serviceLink = `^POSTBRIDGE_([A-Z0-9_]+_)?` +
	`(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9_]+)?=|PORT=(tcp|udp|sctp)://|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=)`

// checkNames rejects unknown names: a misspelt setting would silently keep its default.
func checkNames(settings map[string]string) error {
	link := regexp.MustCompile(serviceLink)
	known := settingNames()
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if !slices.Contains(known, name) && !link.MatchString(name+"="+settings[name]) {
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

// suggestion returns the remedy for an unknown name: the known name within two typing errors, if there is one.
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

// editDistance returns the Levenshtein distance of a and b.
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
