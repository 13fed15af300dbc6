package main

import (
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"
)

// TestCgroupMemory reads false control groups: the lines of /proc/self/cgroup, and the files in /sys/fs/cgroup.
func TestCgroupMemory(t *testing.T) {
	const none = "9223372036854771712" // what version 1 has for no limit
	for _, test := range []struct {
		name, groups, files string
		want                int64
	}{
		{"nothing", "", "", 0},
		{"no limit", "0::/a", "a/memory.max=max", 0},
		{"no file", "0::/a", "", 0},
		{"its own", "0::/a/b", "a/b/memory.max=536870912 a/memory.max=max", 512 << 20},
		{"a parent's", "0::/a/b", "a/b/memory.max=max a/memory.max=1000", 1000},
		{"a lower one of a parent", "0::/a/b/c", "a/b/c/memory.max=3000 a/memory.max=2000", 2000},
		{"a namespace", "0::/", "memory.max=4000", 4000},
		{"outside of the namespace", "0::/../b", "memory.max=4000", 4000},
		{"a systemd unit", "0::/system.slice/postbridge.service", "system.slice/postbridge.service/memory.max=5000",
			5000},
		{"not a number", "0::/a nonsense", "a/memory.max=lots", 0},
		{"version 1", "5:devices:/a 4:memory:/a/b 0::/",
			"memory/a/b/memory.limit_in_bytes=6000 memory/memory.limit_in_bytes=" + none, 6000},
		{"version 1 without a limit", "4:memory:/a", "memory/a/memory.limit_in_bytes=" + none, 0},
		{"version 1, a parent's", "4:cpu,memory:/a/b", "memory/a/memory.limit_in_bytes=7000", 7000},
		{"version 1 in a container", "4:memory:/docker/1", "memory/memory.limit_in_bytes=8000", 8000},
		{"version 1 of other controllers", "4:cpu,memoryless:/a", "memory/a/memory.limit_in_bytes=9000", 0},
	} {
		root := fstest.MapFS{"proc/self/cgroup": {Data: []byte(strings.ReplaceAll(test.groups, " ", "\n") + "\n")}}
		for file := range strings.FieldsSeq(test.files) {
			path, text, _ := strings.Cut(file, "=")
			root["sys/fs/cgroup/"+path] = &fstest.MapFile{Data: []byte(text + "\n")}
		}
		if got := cgroupMemory(root); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
	if got := cgroupMemory(fstest.MapFS{}); got != 0 {
		t.Errorf("without control groups: %d", got)
	}
}

// TestLimitMemory leaves a limit alone that the environment sets.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	root := fstest.MapFS{
		"proc/self/cgroup":         {Data: []byte("0::/\n")},
		"sys/fs/cgroup/memory.max": {Data: []byte("1000000000000\n")},
	}
	for value, want := range map[string]int64{"": 800_000_000_000, "512MiB": before} {
		debug.SetMemoryLimit(before)
		(&process{env: map[string]string{"GOMEMLIMIT": value}}).limitMemory(root)
		if got := debug.SetMemoryLimit(-1); got != want {
			t.Errorf("with GOMEMLIMIT=%s: %d, want %d", value, got, want)
		}
	}
}
