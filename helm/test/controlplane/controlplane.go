// Package controlplane runs a real Kubernetes control plane without containers: etcd, the API server and, optionally,
// the controllers and the scheduler are processes that listen on loopback.
package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ControlPlane is a running control plane.
type ControlPlane struct {
	// Kubeconfig is the path of the administrator's kubeconfig.
	Kubeconfig string
	Config     *rest.Config
	Client     kubernetes.Interface

	dir       string
	processes []*exec.Cmd
}

// Start starts a control plane from the programs in the directory tools, with its data and logs in dir. Without
// controllers, applied objects are validated and stored, but not acted on.
func Start(ctx context.Context, tools, dir string, controllers bool) (*ControlPlane, error) {
	c := &ControlPlane{Kubeconfig: filepath.Join(dir, "kubeconfig"), dir: dir}
	if err := c.start(ctx, tools, controllers); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

func (c *ControlPlane) start(ctx context.Context, tools string, controllers bool) error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	etcd, peer, api := "http://"+ports[0], "http://"+ports[1], "https://"+ports[2]
	key, public, err := c.makeFiles(api)
	if err != nil {
		return err
	}
	if err := c.Run(tools+"/etcd", "--data-dir", c.dir+"/etcd", "--listen-client-urls", etcd,
		"--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer,
		"--unsafe-no-fsync"); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(ports[2])
	if err != nil {
		return err
	}
	if err := c.Run(tools+"/kube-apiserver", "--etcd-servers", etcd, "--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port", port, "--cert-dir", c.dir+"/certs", "--token-auth-file", c.dir+"/tokens",
		"--authorization-mode=Node,RBAC",
		"--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none", "--service-account-issuer", api,
		"--service-account-key-file", public, "--service-account-signing-key-file", key); err != nil {
		return err
	}
	if c.Config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil {
		return err
	}
	c.Config.QPS = -1 // no limit: the test is the only client
	if c.Client, err = kubernetes.NewForConfig(c.Config); err != nil {
		return err
	}
	if err := c.waitReady(ctx); err != nil || !controllers {
		return err
	}
	if err := c.Run(tools+"/kube-controller-manager", "--kubeconfig", c.Kubeconfig, "--bind-address=127.0.0.1",
		"--secure-port=0",
		"--service-account-private-key-file", key, "--leader-elect=false",
		"--use-service-account-credentials=false"); err != nil {
		return err
	}
	return c.Run(tools+"/kube-scheduler", "--kubeconfig", c.Kubeconfig, "--bind-address=127.0.0.1", "--secure-port=0",
		"--leader-elect=false")
}

// makeFiles writes the key of service accounts, the administrator's token, and a kubeconfig.
func (c *ControlPlane) makeFiles(api string) (key, public string, err error) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", "", err
	}
	der, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		return "", "", err
	}
	key, public = c.dir+"/sa.key", c.dir+"/sa.pub"
	token := rand.Text()
	return key, public, errors.Join(
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY",
			Bytes: x509.MarshalPKCS1PrivateKey(private)}), 0o600),
		os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600),
		os.WriteFile(c.dir+"/tokens", []byte(token+`,admin,admin,"system:masters"`+"\n"), 0o600),
		os.WriteFile(c.Kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`, api, token), 0o600),
	)
}

// Run runs a program until Stop. Its output goes to a file in the control plane's directory.
func (c *ControlPlane) Run(program string, args ...string) error {
	log, err := os.Create(filepath.Join(c.dir, filepath.Base(program)+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.processes = append(c.processes, cmd)
	return nil
}

func (c *ControlPlane) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(c.dir + "/kube-apiserver.log")
			return fmt.Errorf("the API server is not ready: %w\n%s", err, log[max(0, len(log)-4000):])
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop stops all processes.
func (c *ControlPlane) Stop() {
	for _, p := range c.processes {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}

// Define installs the custom resource definitions in dir, and waits until the API server serves them.
func (c *ControlPlane) Define(ctx context.Context, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("there are no definitions in %s", dir)
	}
	kubectl := filepath.Join(filepath.Dir(dir), "kubectl")
	for _, args := range [][]string{
		{"apply", "--server-side", "--filename", dir},
		{"wait", "--for=condition=Established", "--timeout=1m", "--filename", dir},
	} {
		cmd := exec.CommandContext(ctx, kubectl, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("kubectl %s: %w: %s", args[0], err, said)
		}
	}
	return nil
}

// freePorts returns free addresses on loopback.
func freePorts(n int) ([]string, error) {
	var all []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }() // after all are chosen, so that no port is chosen twice
		all = append(all, l.Addr().String())
	}
	return all, nil
}
