package check

import (
	"errors"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.yaml.in/yaml/v3"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
)

// nackStream is a Stream resource of NACK, with the fields of its API that nack.yaml uses.
type nackStream struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Spec       struct {
		Name            string
		Subjects        []string
		Storage         string
		Replicas        int
		Discard         string
		MaxAge          time.Duration `yaml:"maxAge"`
		DuplicateWindow time.Duration `yaml:"duplicateWindow"`
		AllowDirect     bool          `yaml:"allowDirect"`
		PreventDelete   bool          `yaml:"preventDelete"`
	}
}

// TestNACK creates the streams of nack.yaml as NACK does. postbridge publishes to them, its doctor has no remark, and
// they are like the streams that postbridge creates with its default settings.
func TestNACK(t *testing.T) {
	made, own := startNATS(t), startNATS(t)
	js := connect(t, made)
	for _, s := range nackStreams(t) {
		if s.APIVersion != "jetstream.nats.io/v1beta2" || s.Kind != "Stream" || s.Metadata.Name == "" ||
			!s.Spec.PreventDelete || s.Spec.Replicas != 3 {
			t.Errorf("%+v", s)
		}
		if _, err := js.CreateStream(t.Context(), s.config()); err != nil {
			t.Fatal(err)
		}
	}
	rejected := []*bridge.Delivery{{
		Spool: "0badcafe", Sequence: 1, ID: "1", Broker: "kite", UserID: "AB1", OrderID: "1",
		Status: event.StatusRejected, ReceivedAt: time.Now(), Data: []byte("{}"),
	}}
	log := slog.New(slog.DiscardHandler)
	publish(t, nats.NewBus(nats.Config{URL: made}, log), rejected)
	for _, r := range nats.Check(t.Context(), nats.Config{URL: made}, 1<<17) {
		if r.Severity > publishers.Info && !strings.Contains(r.Text, "has 1 of the 3 replicas") { // on this server
			t.Errorf("%v %s", r.Severity, r)
		}
	}

	publish(t, nats.NewBus(nats.Config{URL: own, CreateStreams: true, MaxAge: 168 * time.Hour}, log), rejected)
	ownJS := connect(t, own)
	for _, name := range []string{"ORDERS", "REJECTS"} { // those that were published to exist
		if got, want := created(t, js, name), created(t, ownJS, name); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is\n%+v, postbridge creates\n%+v", name, got, want)
		}
	}
}

// config returns the configuration with which NACK creates the stream, but for the replicas, which need a cluster.
func (s *nackStream) config() jetstream.StreamConfig {
	c := jetstream.StreamConfig{
		Name: s.Spec.Name, Subjects: s.Spec.Subjects, Storage: jetstream.MemoryStorage, // NACK's default
		MaxAge: s.Spec.MaxAge, Duplicates: s.Spec.DuplicateWindow, AllowDirect: s.Spec.AllowDirect,
	}
	if s.Spec.Storage == "file" {
		c.Storage = jetstream.FileStorage
	}
	if s.Spec.Discard == "new" {
		c.Discard = jetstream.DiscardNew
	}
	return c
}

// created returns the configuration of a stream without its description.
func created(t *testing.T, js jetstream.JetStream, name string) jetstream.StreamConfig {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.Description = ""
	return c
}

func connect(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	conn, err := natsgo.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// nackStreams reads the resources of nack.yaml; a field that nackStream lacks is an error.
func nackStreams(t *testing.T) (all []nackStream) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(read(t, "nats/nack.yaml")))
	d.KnownFields(true)
	for {
		var s nackStream
		err := d.Decode(&s)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
}
