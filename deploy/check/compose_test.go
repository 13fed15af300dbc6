package check

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

const top = "../.." // root of the repository

// TestCompose checks each combination of the Compose files: Compose accepts it, its containers are confined, and
// postbridge accepts its settings.
func TestCompose(t *testing.T) {
	program := build(t)
	for _, files := range []string{"nats", "kafka", "nats monitoring", "kafka monitoring"} {
		t.Run(files, func(t *testing.T) {
			p := load(t, strings.Fields(files))
			for name, s := range p.Services {
				checkService(t, name, s)
				access := func(c types.ServiceSecretConfig) bool { return strings.HasSuffix(c.Source, "-access") }
				if slices.ContainsFunc(s.Secrets, access) != (name == "reconcile") {
					t.Errorf("%s has the secrets %v", name, s.Secrets)
				}
			}
			for name, c := range p.Secrets {
				// Compose writes other secrets into the root of the container, which is read-only.
				if dir := filepath.Join(p.WorkingDir, "secrets"); c.File != filepath.Join(dir, name) {
					t.Errorf("secret %s is not a file in %s: %+v", name, dir, c)
				}
			}
			// A named volume outlives the container and gets the owner of /data in the image.
			if v := p.Services["postbridge"].Volumes; len(v) != 1 || v[0].Type != types.VolumeTypeVolume ||
				v[0].Source == "" || v[0].Target != "/data" {
				t.Errorf("postbridge has its data in %+v", v)
			}
			takesSettings(t, program, p.Services["postbridge"])
			takesReconcile(t, program, p.Services["reconcile"])
		})
	}
}

// load reads Compose files as Compose does, with all profiles: unknown keys are errors.
func load(t *testing.T, names []string) *types.Project {
	t.Helper()
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join(top, "deploy/compose", name+".yaml"))
	}
	o, err := cli.NewProjectOptions(paths, cli.WithProfiles([]string{"reconcile"}))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkService checks the rules for every container.
func checkService(t *testing.T, name string, s types.ServiceConfig) {
	t.Helper()
	if !s.ReadOnly && name != "kafka" { // kafka.yaml has the reason
		t.Errorf("%s can write to its root", name)
	}
	if fmt.Sprint(s.CapDrop) != "[ALL]" || len(s.CapAdd) > 0 || s.Privileged {
		t.Errorf("%s has capabilities", name)
	}
	if fmt.Sprint(s.SecurityOpt) != "[no-new-privileges:true]" {
		t.Errorf("%s: security_opt %v", name, s.SecurityOpt)
	}
	if s.NetworkMode != "" || s.Pid != "" || s.Ipc != "" {
		t.Errorf("%s is in a namespace of the host", name)
	}
	for _, port := range s.Ports {
		if port.HostIP != "127.0.0.1" {
			t.Errorf("%s: port %s is open to other machines", name, port.Published)
		}
	}
	// postbridge takes 26 seconds to stop, at most.
	if d := s.StopGracePeriod; d == nil || time.Duration(*d) < 30*time.Second {
		t.Errorf("%s is killed %v after it is asked to stop", name, d)
	}
	if s.Restart != "unless-stopped" {
		t.Errorf("%s: restart %q", name, s.Restart)
	}
	for _, v := range s.Volumes {
		if v.Type != types.VolumeTypeBind {
			continue
		}
		if _, err := os.Stat(v.Source); err != nil || !v.ReadOnly {
			t.Errorf("%s: %s is missing, or can be written: %v", name, v.Source, err)
		}
	}
	if s.Build == nil {
		return
	}
	if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// takesSettings checks that postbridge accepts the environment, and other settings. postbridge rejects unknown names.
func takesSettings(t *testing.T, program string, s types.ServiceConfig, others ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, secret := range s.Secrets {
		text := secret.Source + "-secret"
		switch secret.Source {
		case "kite":
			text = "1234=" + text
		case "kite-access":
			text = "AB1234=key:" + text
		}
		if err := os.WriteFile(filepath.Join(dir, secret.Source), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.Environment) == 0 {
		t.Errorf("%s has no settings", s.Name)
	}
	cmd := exec.Command(program, "config")
	cmd.Env = others
	for name, value := range s.Environment {
		if value == nil {
			t.Fatalf("%s has no value", name)
		}
		text := *value
		if file, ok := strings.CutPrefix(text, "/run/secrets/"); ok {
			text = filepath.Join(dir, file)
		}
		cmd.Env = append(cmd.Env, name+"="+text)
	}
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: postbridge config: %v\n%s", s.Name, err, said)
	}
}

// takesReconcile checks that postbridge accepts the settings and the flags of reconcile.
func takesReconcile(t *testing.T, program string, s types.ServiceConfig) {
	t.Helper()
	takesSettings(t, program, s, "POSTBRIDGE_KITE_SECRETS=1234=secret") // config wants a broker that posts
	if len(s.Command) == 0 || s.Command[0] != "reconcile" || len(s.Volumes) > 0 {
		t.Errorf("reconcile runs %v with the volumes %v", s.Command, s.Volumes)
	}
	if said, err := exec.Command(program, append(s.Command, "--help")...).CombinedOutput(); err != nil {
		t.Errorf("postbridge %v: %v\n%s", s.Command, err, said)
	}
}

// build builds postbridge.
func build(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "postbridge")
	cmd := exec.Command("go", "build", "-o", out, "./cmd/postbridge")
	cmd.Dir = top
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	return out
}
