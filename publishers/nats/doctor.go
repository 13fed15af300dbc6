package nats

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// checkTimeout bounds the connect to each server, and the requests for each stream.
const checkTimeout = 2 * time.Second

// goodReplicas is how many replicas a stream needs to lose a server without a loss of events or an outage.
const goodReplicas = 3

// The oldest nats-server that gets fixes: the last two minor versions do.
const oldestMajor, oldestMinor = 2, 14

// checker checks one JetStream over a connection of its own.
type checker struct {
	cfg      Config
	maxEvent int64 // bytes
	conn     *natsgo.Conn
	js       jetstream.JetStream
	rights   publishRights // all, if they are not known
}

// Check checks what the bus of a valid configuration guarantees for events of up to maxEvent bytes. It changes nothing.
// An embedded server is at cfg.URL, as for any other client.
func Check(ctx context.Context, cfg Config, maxEvent int64) []publishers.CheckResult {
	ctx, disconnect := context.WithCancel(ctx)
	defer disconnect()
	x := &checker{cfg: cfg, maxEvent: maxEvent}
	bus := &publishers.Checks{Area: "nats", What: "the embedded bus"}
	if cfg.Embedded == nil {
		bus.What = "the bus at " + cfg.hosts()
	}
	if err := x.connect(ctx); err != nil {
		x.unreachable(bus, err)
		return bus.Results
	}
	x.checkServer(bus)
	destinations := newDestinations(&cfg)
	ofStreams := make([][]publishers.CheckResult, len(destinations))
	var checks sync.WaitGroup
	for i, d := range destinations {
		checks.Go(func() { ofStreams[i] = x.stream(ctx, d) }) // concurrently: a denied request only times out
	}
	checks.Wait()
	return append(bus.Results, slices.Concat(ofStreams...)...)
}

// connect connects until ctx ends. It tries one server after the other: the library reports the last error only.
func (x *checker) connect(ctx context.Context) (failed error) {
	options := append(ConnectOptions(x.cfg), natsgo.Name("postbridge doctor"), natsgo.NoReconnect(),
		natsgo.Timeout(checkTimeout), natsgo.SetCustomDialer(&dialer{ctx: ctx, timeout: checkTimeout}),
		natsgo.ErrorHandler(func(*natsgo.Conn, *natsgo.Subscription, error) {})) // the default one prints
	servers, _ := ParseURL(x.cfg.URL) // was checked
	if slices.ContainsFunc(servers, func(u *url.URL) bool { return u.Scheme == "tls" || u.Scheme == "wss" }) {
		options = append(options, natsgo.Secure()) // for all servers, as in the publisher
	}
	for _, server := range servers {
		conn, err := natsgo.Connect(server.String(), options...)
		if err == nil {
			x.conn = conn
			x.js, err = NewJetStream(conn, x.cfg)
			return err
		}
		// A refused login is the most useful of several errors.
		if failed == nil || errors.Is(failed, natsgo.ErrNoServers) || authError(err) {
			failed = err
		}
	}
	return failed
}

func (x *checker) unreachable(bus *publishers.Checks, err error) {
	refused, embedded := authError(err), x.cfg.Embedded != nil
	bus.Fail(refused, "refuses the login: "+err.Error(), connectionRemedy(err))
	bus.Warn(!refused && embedded, "does not run, so it is not checked",
		"start 'postbridge serve' and run the doctor beside it")
	bus.Fail(!refused && !embedded, "cannot be reached: "+x.cfg.connectError(err).Error(), connectionRemedy(err))
}

// publishRights holds the subjects that a user may and may not publish to. An empty Allow allows all.
type publishRights struct{ Allow, Deny []string }

// cover reports whether all subjects of a pattern are allowed and none of them is denied.
func (r publishRights) cover(pattern string) bool {
	denied := slices.ContainsFunc(r.Deny, func(subject string) bool { return server.SubjectsCollide(subject, pattern) })
	return !denied && (len(r.Allow) == 0 || covers(r.Allow, pattern))
}

// checkServer checks what applies to all streams, and requests our rights.
func (x *checker) checkServer(bus *publishers.Checks) {
	bus.Info(x.cfg.Embedded == nil, "acknowledges before its fsync unless sync_interval is always, which a client "+
		"cannot see: a loss of power may cost acknowledged events",
		"set sync_interval: always in its jetstream block, or have replicas that do not lose power together")
	version := x.conn.ConnectedServerVersion()
	bus.Warn(outdated(version), "runs nats-server "+version+", which gets no more fixes", fmt.Sprintf(
		"upgrade it to %d.%d or later", oldestMajor, oldestMinor))
	var user struct {
		Data struct {
			Permissions struct{ Publish publishRights }
		}
	}
	m, err := x.conn.Request("$SYS.REQ.USER.INFO", nil, checkTimeout)
	if err == nil {
		err = json.Unmarshal(m.Data, &user)
	}
	bus.Info(err != nil, fmt.Sprintf("does not show the permissions of the user: %v", err),
		"allow publishing to $SYS.REQ.USER.INFO and subscribing to "+x.cfg.answers()+", or try --probe")
	x.rights = user.Data.Permissions.Publish
	bus.OK("can be reached")
}

// outdated reports whether a version of nats-server is older than the oldest that gets fixes. One that is not a version
// is not.
func outdated(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return err == nil && (major < oldestMajor || major == oldestMajor && minor < oldestMinor)
}

// stream checks one of our streams.
func (x *checker) stream(ctx context.Context, d *destination) []publishers.CheckResult {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	c := &publishers.Checks{Area: "nats", What: "stream " + d.stream}
	c.Fail(!x.rights.cover(d.needed), "cannot be published to",
		"allow publishing to "+d.subjects+", as deploy/nats/users.conf does")
	s, err := x.js.Stream(ctx, d.stream)
	if err != nil {
		missing := errors.Is(err, jetstream.ErrStreamNotFound)
		c.Info(missing && x.cfg.CreateStreams, "is missing", "start 'postbridge serve', which creates it")
		c.Fail(missing && !x.cfg.CreateStreams, "is missing", d.createRemedy())
		remedy := d.lookupRemedy(x.cfg.answers())
		if noJetStream(err) {
			err, remedy = errNoJetStream, x.cfg.jetStreamRemedy()
		}
		c.Fail(!missing, "cannot be looked up: "+advised(err).Error(), remedy)
		return c.Results
	}
	info := s.CachedInfo()
	x.checkSettings(c, d, info)
	if d.name != bridge.Deadletters { // no dead letter is looked up
		checkRead(ctx, c, d, s)
	}
	c.Info(info.Domain != "" && x.cfg.Domain == "", "is in JetStream domain "+info.Domain+", that of the server",
		"set POSTBRIDGE_NATS_DOMAIN if it belongs in another one")
	c.OK(fmt.Sprintf("stores events in files (replicas: %d)", info.Config.Replicas))
	return c.Results
}

// checkSettings checks the configuration of a stream, its replicas and its space.
func (x *checker) checkSettings(c *publishers.Checks, d *destination, info *jetstream.StreamInfo) {
	config, embedded := &info.Config, x.cfg.Embedded != nil
	c.Results = append(c.Results, d.check(config, embedded)...)
	c.Retention(cmp.Or(config.MaxAge, -1), "max_age")
	largest := x.conn.MaxPayload()
	if config.MaxMsgSize > 0 {
		largest = min(largest, int64(config.MaxMsgSize))
	}
	c.MessageSize(largest, x.maxEvent, "its max_msg_size and the server's max_payload")
	// An embedded server fails with this machine's disk, as the spool does.
	c.Warn(config.Replicas < goodReplicas && !embedded,
		fmt.Sprintf("has %d of the 3 replicas that survive the loss of a server", config.Replicas),
		"set its replicas to 3 (nats stream edit --replicas 3), in a cluster of three servers")
	if info.Cluster != nil {
		for _, peer := range info.Cluster.Replicas {
			c.Warn(peer.Offline, "lacks its replica on "+peer.Name+", which is offline", "bring that server back")
		}
	}
	// Negative without a limit, which is -1 then.
	used := max(float64(info.State.Bytes)/float64(config.MaxBytes), float64(info.State.Msgs)/float64(config.MaxMsgs))
	const remedy = "raise its max_bytes or max_msgs, or lower its max_age"
	refuses := !dropsOldest(config)
	c.Fail(refuses && used >= 1, "is full, and refuses events, which wait in the spool", remedy)
	c.Warn(refuses && used > 0.8 && used < 1,
		fmt.Sprintf("is %.0f%% full, and refuses events when it is full", 100*used), remedy)
}

// checkRead looks up an event that does not exist, as serve looks up those that an earlier run may have published.
func checkRead(ctx context.Context, c *publishers.Checks, d *destination, s jetstream.Stream) {
	_, err := s.GetLastMsgForSubject(ctx, strings.ReplaceAll(d.needed, "*", "_"))
	c.Warn(err != nil && !errors.Is(err, jetstream.ErrMsgNotFound),
		fmt.Sprintf("cannot be read, so events may be stored twice after an outage: %v", err), d.readRemedy())
}
