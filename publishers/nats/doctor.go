package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

const (
	// checkTimeout bounds the connect to each server, and the requests for each stream.
	checkTimeout = 2 * time.Second
	// shortAge is how long a stream should keep events at least: consumers may be away for a night.
	shortAge = 24 * time.Hour
	// goodReplicas is how many a stream needs to lose a server without losing events or a pause.
	goodReplicas = 3
)

// checker checks one JetStream over a connection of its own.
type checker struct {
	cfg      Config
	maxEvent int64 // bytes
	conn     *natsgo.Conn
	js       jetstream.JetStream
	rights   publishRights // all, if they are not known
}

// Check checks what the bus of a valid configuration promises for events of up to maxEvent bytes. It changes nothing.
// An embedded server is at cfg.URL, as for any other client.
func Check(ctx context.Context, cfg Config, maxEvent int64) []publishers.CheckResult {
	ctx, disconnect := context.WithCancel(ctx)
	defer disconnect()
	x := &checker{cfg: cfg, maxEvent: maxEvent}
	bus := publishers.Checks{Area: "nats", What: "the embedded bus"}
	if cfg.Embedded == nil {
		bus.What = "the bus at " + cfg.hosts()
	}
	if err := x.connect(ctx); err != nil {
		x.unreachable(&bus, err)
		return bus.Results
	}
	x.checkServer(&bus)
	all := bus.Results
	for _, d := range newDestinations(cfg.Prefix) {
		all = append(all, x.stream(ctx, d)...)
	}
	return all
}

// connect connects until ctx ends. It tries one server after the other: the library reports the last error only.
func (x *checker) connect(ctx context.Context) (failed error) {
	options := append(ConnectOptions(x.cfg), natsgo.Name("postbridge doctor"), natsgo.NoReconnect(),
		natsgo.Timeout(checkTimeout), natsgo.SetCustomDialer(&dialer{ctx: ctx, timeout: checkTimeout}),
		natsgo.ErrorHandler(func(*natsgo.Conn, *natsgo.Subscription, error) {})) // which would print
	servers, _ := ParseURL(x.cfg.URL) // was checked
	if slices.ContainsFunc(servers, func(u *url.URL) bool { return u.Scheme == "tls" || u.Scheme == "wss" }) {
		options = append(options, natsgo.Secure()) // of all, as for the publisher
	}
	for _, server := range servers {
		conn, err := natsgo.Connect(server.String(), options...)
		if err == nil {
			x.conn = conn
			x.js, err = jetstream.New(conn)
			return err
		}
		if failed == nil || errors.Is(failed, natsgo.ErrNoServers) || authError(err) { // a refused login says most
			failed = err
		}
	}
	return failed
}

func (x *checker) unreachable(bus *publishers.Checks, err error) {
	switch {
	case authError(err):
		bus.Fail("refuses the login: "+err.Error(), "check POSTBRIDGE_NATS_USER and POSTBRIDGE_NATS_PASSWORD, "+
			"POSTBRIDGE_NATS_TOKEN or POSTBRIDGE_NATS_CREDS_FILE")
	case x.cfg.Embedded != nil:
		bus.Warn("does not run, so it is not checked", "start 'postbridge serve' and run the doctor beside it")
	default:
		bus.Fail("cannot be reached: "+lasting(err).Error(), "start it, or check POSTBRIDGE_NATS_URL, the network and "+
			"POSTBRIDGE_NATS_TLS_CA_FILE, POSTBRIDGE_NATS_TLS_CERT_FILE and POSTBRIDGE_NATS_TLS_KEY_FILE")
	}
}

// publishRights are subjects that a user may or may not publish to. No allowed subject allows all.
type publishRights struct{ Allow, Deny []string }

// cover reports whether all subjects of a pattern are allowed and none of them is denied.
func (r publishRights) cover(pattern string) bool {
	denied := slices.ContainsFunc(r.Deny, func(subject string) bool { return overlap(subject, pattern) })
	return !denied && (len(r.Allow) == 0 || takes(r.Allow, pattern))
}

// checkServer checks what holds for all streams, and asks for our rights.
func (x *checker) checkServer(bus *publishers.Checks) {
	if x.cfg.Embedded == nil {
		bus.Info("acknowledges before its fsync unless sync_interval is always, which a client cannot see: "+
			"a loss of power may cost acknowledged events",
			"set sync_interval: always in its jetstream block, or have replicas that do not lose power together")
	}
	var user struct {
		Data struct {
			Permissions struct{ Publish publishRights }
		}
	}
	m, err := x.conn.Request("$SYS.REQ.USER.INFO", nil, checkTimeout)
	if err == nil {
		err = json.Unmarshal(m.Data, &user)
	}
	if err != nil {
		bus.Info("does not show the permissions of the user: "+err.Error(),
			"allow publishing to $SYS.REQ.USER.INFO and subscribing to _INBOX.>, or try --probe")
	}
	x.rights = user.Data.Permissions.Publish
	bus.OK("can be reached")
}

// stream checks one of our streams.
func (x *checker) stream(ctx context.Context, d *destination) []publishers.CheckResult {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	c := publishers.Checks{Area: "nats", What: "stream " + d.stream}
	if !x.rights.cover(d.needed) {
		c.Fail("cannot be published to", "allow publishing to "+d.subjects+", as deploy/nats/users.conf does")
	}
	s, err := x.js.Stream(ctx, d.stream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound) && x.cfg.CreateStreams:
		c.Info("is missing", "start 'postbridge serve', which creates it")
	case errors.Is(err, jetstream.ErrStreamNotFound):
		c.Fail("is missing", d.createRemedy())
	case err != nil:
		c.Fail("cannot be looked up: "+lookupError(err).Error(), "allow $JS.API.STREAM.INFO."+d.stream+
			" and subscribing to _INBOX.>, or see the server's log: a stream needs a majority of its replicas")
	default:
		x.checkSettings(&c, d, s.CachedInfo())
		if d.name != bridge.Deadletters { // nothing is looked up there
			checkRead(ctx, &c, d, s)
		}
		c.OK(fmt.Sprintf("stores events in files (replicas: %d)", s.CachedInfo().Config.Replicas))
	}
	return c.Results
}

// checkSettings checks what a stream keeps, for how long, and where.
func (x *checker) checkSettings(c *publishers.Checks, d *destination, info *jetstream.StreamInfo) {
	config, embedded := &info.Config, x.cfg.Embedded != nil
	c.Results = append(c.Results, d.check(config, embedded)...)
	if config.MaxAge != 0 && config.MaxAge < shortAge {
		c.Warn(fmt.Sprintf("keeps events for %s: a consumer that is away for longer misses them", config.MaxAge),
			"raise its max_age to the longest time that a consumer may be away, a long weekend for one")
	}
	largest := x.conn.MaxPayload()
	if config.MaxMsgSize > 0 {
		largest = min(largest, int64(config.MaxMsgSize))
	}
	if largest < x.maxEvent {
		c.Warn(fmt.Sprintf("takes messages up to %s, but the event of the largest postback may have %s",
			publishers.SizeText(largest), publishers.SizeText(x.maxEvent)),
			"raise its max_msg_size and the server's max_payload, or lower POSTBRIDGE_MAX_BODY")
	}
	// An embedded server shares the fate of this machine's disk, as the spool does.
	if config.Replicas < goodReplicas && !embedded {
		c.Warn(fmt.Sprintf("has %d of the 3 replicas that survive the loss of a server", config.Replicas),
			"set its replicas to 3 (nats stream edit --replicas 3), in a cluster of three servers")
	}
	if info.Cluster != nil {
		for _, peer := range info.Cluster.Replicas {
			if peer.Offline {
				c.Warn("lacks its replica on "+peer.Name+", which is offline", "bring that server back")
			}
		}
	}
	if !dropsOldest(config) {
		checkSpace(c, max(share(info.State.Bytes, config.MaxBytes), share(info.State.Msgs, config.MaxMsgs)))
	}
}

// checkSpace checks how much of a stream that refuses events when it is full is used.
func checkSpace(c *publishers.Checks, used float64) {
	const remedy = "raise its max_bytes or max_msgs, or lower its max_age"
	if used >= 1 {
		c.Fail("is full, and refuses events, which wait in the spool", remedy)
	} else if used > 0.8 {
		c.Warn(fmt.Sprintf("is %.0f%% full, and refuses events when it is full", 100*used), remedy)
	}
}

// share returns which part of a limit is used; 0 without a limit.
func share(used uint64, limit int64) float64 {
	if limit <= 0 {
		return 0
	}
	return float64(used) / float64(limit)
}

// checkRead looks up an event that is not there, as serve looks up those that it may have published before.
func checkRead(ctx context.Context, c *publishers.Checks, d *destination, s jetstream.Stream) {
	_, err := s.GetLastMsgForSubject(ctx, strings.ReplaceAll(d.needed, "*", "_"))
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		c.Warn("cannot be read, so events may be stored twice after an outage: "+err.Error(),
			fmt.Sprintf("allow publishing to $JS.API.DIRECT.GET.%s.>, or to $JS.API.STREAM.MSG.GET.%[1]s "+
				"if the stream does not allow direct access", d.stream))
	}
}
