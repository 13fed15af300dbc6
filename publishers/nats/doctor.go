package nats

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// examineDial is how long a server may take to accept the doctor, examineConnect all of them together;
	// examineRequest, to answer.
	examineDial    = 2 * time.Second
	examineConnect = 8 * time.Second
	examineRequest = 5 * time.Second
	// shortAge is how long a stream should keep events at least: consumers may be away for a night.
	shortAge = 24 * time.Hour
	// clockOff is how far our clock may be from the bus's.
	clockOff = time.Second
	// goodReplicas is how many a stream needs to lose a server without losing events or a pause.
	goodReplicas = 3
	// oldServerMajor and oldServerMinor are the version below which servers get no more fixes.
	oldServerMajor, oldServerMinor = 2, 10
)

// examiner grades what one JetStream promises, over a connection of its own.
type examiner struct {
	bridge.Findings
	cfg      Config // for a client, of an embedded server, too
	o        bridge.Examination
	embedded bool
	conn     *natsgo.Conn
	js       jetstream.JetStream
	rights   publishRights          // as far as we are told
	told     bool                   // whether we are
	limits   *jetstream.AccountInfo // nil if they are not told
	planned  int                    // missing streams that serve could create
	close    func()

	mu      sync.Mutex
	refused context.CancelCauseFunc // ends the request under way; guarded by mu
}

// errNoAnswers is that we may not hear what the server answers.
var errNoAnswers = errors.New("answers cannot arrive")

// Examine grades what the bus of a valid configuration promises. It is a client like any other, also of an embedded
// server, which is at cfg.URL for it: it needs no Publisher and is in the way of none. It ends within seconds and, but
// for a probe, changes nothing.
func Examine(ctx context.Context, cfg Config, o bridge.Examination) []bridge.Finding {
	x := &examiner{Findings: bridge.Findings{Area: "nats"}, cfg: cfg, o: o, embedded: cfg.Embedded != nil}
	x.cfg.Embedded = nil
	err := x.connect(ctx)
	defer x.close()
	if err != nil {
		x.unreachable(err)
		return x.All
	}
	x.server()
	if !x.account(ctx) {
		return x.All
	}
	x.permissions(ctx)
	for _, d := range x.destinations() {
		x.stream(ctx, d)
	}
	if o.Probe {
		x.probe(ctx)
	}
	return x.All
}

func (x *examiner) destinations() []*destination {
	return []*destination{
		newDestination(bridge.Orders, x.cfg.Prefix, "*.*.*"),
		newDestination(bridge.Rejects, x.cfg.Prefix, "*.*.*"),
		newDestination(bridge.Deadletters, x.cfg.Prefix, "*"),
	}
}

// connect asks one server after the other: of all together, the library tells one that does not run as if none did.
func (x *examiner) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	x.close = cancel // the dialer closes what it dialed
	tooLong := time.AfterFunc(examineConnect, cancel)
	defer tooLong.Stop()
	options := append(ConnectOptions(x.cfg),
		natsgo.Name("postbridge doctor"),
		natsgo.NoReconnect(),
		natsgo.Timeout(examineDial),
		natsgo.SetCustomDialer(&dialer{ctx: ctx, timeout: examineDial}),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { x.refuse(err) }),
	)
	servers, _ := ParseURL(x.cfg.URL) // was checked
	if slices.ContainsFunc(servers, wantsTLS) {
		options = append(options, natsgo.Secure()) // of all, as for the publisher
	}
	var failed error
	for _, server := range servers {
		conn, err := natsgo.Connect(server.String(), options...)
		if err == nil {
			x.conn = conn
			x.js, err = jetstream.New(conn)
			return err
		}
		// The one that matters most is that we are not let in, the least that nobody listens.
		if failed == nil || errors.Is(failed, natsgo.ErrNoServers) || authError(err) {
			failed = err
		}
	}
	return failed
}

func wantsTLS(u *url.URL) bool { return u.Scheme == "tls" || u.Scheme == "wss" }

// unreachable says why there is no connection.
func (x *examiner) unreachable(err error) {
	what := "the bus at " + x.cfg.hosts()
	var op *net.OpError
	var network net.Error
	const start = "start it, or check POSTBRIDGE_NATS_URL and the network"
	switch {
	case authError(err):
		x.Add(bridge.Fail, what, "refuses the login: "+err.Error(), "check POSTBRIDGE_NATS_USER and POSTBRIDGE_NATS_PASSWORD, POSTBRIDGE_NATS_TOKEN or POSTBRIDGE_NATS_CREDS_FILE")
	case x.embedded:
		x.Add(bridge.Warn, "the embedded bus at "+x.cfg.hosts(), "does not run, so nothing of it is graded", "start 'postbridge serve' and run the doctor beside it")
	case errors.Is(err, natsgo.ErrNoServers):
		x.Add(bridge.Fail, what, "cannot be reached: nobody listens there", start)
	case errors.Is(err, context.Canceled), errors.Is(err, natsgo.ErrTimeout), errors.As(err, &network) && network.Timeout():
		x.Add(bridge.Fail, what, "does not answer", start)
	case errors.As(err, &op) && op.Op == "dial":
		x.Add(bridge.Fail, what, "cannot be reached: "+lasting(err).Error(), start)
	default:
		x.Add(bridge.Fail, what, "does not let us in: "+lasting(err).Error(),
			"check POSTBRIDGE_NATS_URL, POSTBRIDGE_NATS_TLS_CA_FILE, POSTBRIDGE_NATS_TLS_CERT_FILE and POSTBRIDGE_NATS_TLS_KEY_FILE")
	}
}

// refuse takes a permission violation, which the server tells apart from the request that it refused.
func (x *examiner) refuse(err error) {
	if !errors.Is(err, natsgo.ErrPermissionViolation) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, inbox := quotedAfter(err.Error(), `Subscription to "`); inbox {
		err = fmt.Errorf("%w: %w", errNoAnswers, err)
	}
	if x.refused != nil {
		x.refused(err)
	}
}

// ask makes one request. Its error is a permission violation, if that is why there is no answer.
func (x *examiner) ask(ctx context.Context, request func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, examineRequest)
	defer cancel()
	ctx, refused := context.WithCancelCause(ctx)
	defer refused(nil)
	x.mu.Lock()
	x.refused = refused
	x.mu.Unlock()
	err := request(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, natsgo.ErrPermissionViolation) {
		return cause
	}
	return err
}

// denied returns the subject that an error of ask says we may not publish to.
func denied(err error) (subject string, ok bool) {
	if !errors.Is(err, natsgo.ErrPermissionViolation) {
		return "", false
	}
	return quotedAfter(err.Error(), `Publish to "`)
}

// server grades the server that we are connected to, and what holds for all streams.
func (x *examiner) server() {
	name := x.conn.ConnectedServerName()
	if name == x.conn.ConnectedServerId() { // it was given none
		name = x.conn.ConnectedAddr()
	}
	version := x.conn.ConnectedServerVersion()
	what := "server " + name
	if x.embedded {
		if name != embeddedName {
			x.Add(bridge.Fail, what, "is at "+x.cfg.hosts()+" in place of the embedded one", "stop it, or set POSTBRIDGE_NATS_LISTEN; to use it, set POSTBRIDGE_NATS_URL")
			return
		}
		x.OK(what, fmt.Sprintf("is embedded, version %s, and syncs its files every %s; the cursor stays %s behind, so that a loss of power costs nothing",
			version, bridge.TimeText(syncInterval), bridge.TimeText(3*syncInterval)))
	} else {
		x.Add(bridge.Info, what, "acknowledges before its fsync unless it was told otherwise (sync_interval is 2m by default), which nobody can see from here: "+
			"a loss of power may cost what was acknowledged since",
			"set sync_interval: always in its jetstream block, or have replicas that do not lose power together")
		x.version(what, version)
	}
	if most := x.conn.MaxPayload(); most < x.o.MaxEvent {
		x.Add(bridge.Warn, what, fmt.Sprintf("takes messages up to %s, but an event of the largest postback (POSTBRIDGE_MAX_BODY) may have %s",
			bridge.SizeText(most), bridge.SizeText(x.o.MaxEvent)), "raise max_payload, or lower POSTBRIDGE_MAX_BODY")
	} else {
		x.OK(what, "takes messages up to "+bridge.SizeText(most))
	}
}

func (x *examiner) version(what, version string) {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return
	}
	if major < oldServerMajor || major == oldServerMajor && minor < oldServerMinor {
		x.Add(bridge.Warn, what, "is an old version, "+version, fmt.Sprintf("upgrade it to %d.%d or later", oldServerMajor, oldServerMinor))
		return
	}
	x.OK(what, "is version "+version)
}

// account grades what JetStream leaves to our account. False is that there is no JetStream to be asked.
func (x *examiner) account(ctx context.Context) bool {
	const what = "JetStream"
	var info *jetstream.AccountInfo
	err := x.ask(ctx, func(ctx context.Context) (err error) {
		info, err = x.js.AccountInfo(ctx)
		return err
	})
	subject, refused := denied(err)
	switch {
	case err == nil:
		x.limits = info
		if len(info.Tiers) == 0 {
			x.storage(what, "the account", info.Tier)
		}
		for _, name := range slices.Sorted(maps.Keys(info.Tiers)) { // one for each number of replicas
			if t := info.Tiers[name]; t.Limits.MaxStore != 0 { // else it is not for files
				x.storage(what, "tier "+name, t)
			}
		}
		return true
	case refused:
		x.Add(bridge.Info, what, "does not tell us the limits of the account", "allow publishing to "+subject+" to see them here")
		return true
	case errors.Is(err, errNoAnswers):
		x.Add(bridge.Fail, "the user", "may not subscribe to answers: "+err.Error(), "allow subscribing to _INBOX.>")
	case errors.Is(err, natsgo.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		x.Add(bridge.Fail, what, "is not enabled", "enable it on the server, and for the account")
	default:
		x.Add(bridge.Fail, what, "does not answer: "+err.Error(), "look at the server's log: a cluster needs a majority of its servers")
	}
	return false
}

// storage grades what is left of the storage of the account, or of one of its tiers.
func (x *examiner) storage(what, whose string, t jetstream.Tier) {
	if t.Limits.MaxStore < 0 {
		x.OK(what, "has no limit of storage for "+whose)
		return
	}
	text := fmt.Sprintf("has %s of %s's %s of file storage in use", bridge.SizeText(int64(t.Store)), whose, bridge.SizeText(t.Limits.MaxStore))
	if int64(t.Store) >= t.Limits.MaxStore {
		x.Add(bridge.Fail, what, text+", and refuses events; they wait in the spool", "raise that limit, or keep events for a shorter time")
		return
	}
	if float64(t.Store) >= 0.8*float64(t.Limits.MaxStore) {
		x.Add(bridge.Warn, what, text, "raise that limit, or keep events for a shorter time; when it is reached events wait in the spool")
		return
	}
	x.OK(what, text)
}

// userInfo is what the server answers to $SYS.REQ.USER.INFO.
type userInfo struct {
	Data struct {
		Permissions *struct {
			Publish publishRights
		}
	}
}

// publishRights are subjects that a user may or may not publish to. Empty lists allow all.
type publishRights struct{ Allow, Deny []string }

// permissions grades what we may publish to. Where that is not told, only publishing would show it.
func (x *examiner) permissions(ctx context.Context) {
	const what = "the user"
	var user userInfo
	err := x.ask(ctx, func(ctx context.Context) error {
		m, err := x.conn.RequestWithContext(ctx, "$SYS.REQ.USER.INFO", nil)
		if err == nil {
			err = json.Unmarshal(m.Data, &user)
		}
		return err
	})
	if err != nil {
		x.Add(bridge.Info, what, "is not told what it may publish to", "allow publishing to $SYS.REQ.USER.INFO to see it here, or try it with --probe")
		return
	}
	x.told = true
	if user.Data.Permissions == nil {
		x.OK(what, "may publish to all subjects")
		return
	}
	x.rights = user.Data.Permissions.Publish
	var missing []string
	for _, d := range x.destinations() {
		if !x.rights.cover(d.needed) {
			missing = append(missing, d.needed)
		}
	}
	if missing != nil {
		x.Add(bridge.Fail, what, "may not publish to "+strings.Join(missing, ", "), "allow it; deploy/nats/users.conf has all that is needed")
		return
	}
	x.OK(what, "may publish to all destinations")
}

// cover reports whether all that a pattern takes is allowed and none of it denied. No list of allowed subjects allows all.
func (r publishRights) cover(pattern string) bool {
	for _, subject := range r.Deny {
		if covers(subject, pattern) || covers(pattern, subject) {
			return false
		}
	}
	return len(r.Allow) == 0 || takes(r.Allow, pattern)
}

// stream grades one of our streams.
func (x *examiner) stream(ctx context.Context, d *destination) {
	what := "stream " + d.stream
	asked := time.Now()
	s := x.find(ctx, d, what)
	if s == nil {
		return
	}
	info := s.CachedInfo()
	if d.name == bridge.Orders {
		x.clock(asked, time.Now(), info.TimeStamp)
	}
	if why, do := d.unfit(&info.Config); why != "" {
		x.Add(bridge.Fail, what, why, do)
	} else {
		x.OK(what, "keeps messages in files")
	}
	x.replicas(what, info)
	x.keeps(what, &info.Config)
	x.lookUps(ctx, d, s)
	x.newest(ctx, d, s)
	x.room(what, info)
}

// find looks a stream up; nil if there is nothing to grade.
func (x *examiner) find(ctx context.Context, d *destination, what string) (s jetstream.Stream) {
	err := x.ask(ctx, func(ctx context.Context) (err error) {
		s, err = x.js.Stream(ctx, d.stream)
		return err
	})
	subject, refused := denied(err)
	switch {
	case err == nil:
		return s
	case errors.Is(err, jetstream.ErrStreamNotFound):
		x.missing(ctx, d, what)
	case refused:
		x.Add(bridge.Fail, what, "cannot be looked up: no permission to publish to "+subject, "allow it")
	default:
		x.Add(bridge.Fail, what, "cannot be looked up: "+err.Error(), "look at the server's log: a stream needs a majority of its replicas")
	}
	return nil
}

// keeps grades what a stream keeps, and for how long.
func (x *examiner) keeps(what string, c *jetstream.StreamConfig) {
	for _, r := range risks(c, x.embedded) {
		x.Add(bridge.Warn, what, r.why, r.do)
	}
	if c.Duplicates >= duplicateWindow/4 {
		x.OK(what, "notices repeats for "+bridge.TimeText(c.Duplicates)+" (older ones are looked up)")
	}
	if c.MaxMsgSize > 0 && int64(c.MaxMsgSize) < x.o.MaxEvent {
		x.Add(bridge.Warn, what, fmt.Sprintf("takes messages up to %s, but an event of the largest postback (POSTBRIDGE_MAX_BODY) may have %s",
			bridge.SizeText(int64(c.MaxMsgSize)), bridge.SizeText(x.o.MaxEvent)), "raise its max_msg_size, or lower POSTBRIDGE_MAX_BODY")
	}
	switch {
	case c.MaxAge == 0:
		x.OK(what, "keeps events for ever")
	case c.MaxAge < shortAge:
		x.Add(bridge.Warn, what, fmt.Sprintf("keeps events for %s: a consumer that is away for longer misses them", bridge.TimeText(c.MaxAge)),
			"raise its max_age to the longest time that a consumer may be away, a long weekend for one")
	default:
		x.OK(what, "keeps events for "+bridge.TimeText(c.MaxAge))
	}
}

// missing grades a stream that is not there.
func (x *examiner) missing(ctx context.Context, d *destination, what string) {
	create := "$JS.API.STREAM.CREATE." + d.stream
	var holder string
	err := x.ask(ctx, func(ctx context.Context) (err error) {
		holder, err = x.js.StreamNameBySubject(ctx, d.needed)
		return err
	})
	refusal, do := x.refusal()
	switch {
	case err == nil && holder != "":
		x.Add(bridge.Fail, what, fmt.Sprintf("is missing, and cannot be created: stream %s takes some of %s", holder, d.subjects),
			"take them off that stream, or set POSTBRIDGE_PREFIX")
	case !x.cfg.CreateStreams:
		x.Add(bridge.Fail, what, "is missing", fmt.Sprintf("create it with subjects %s, or let postbridge do it (POSTBRIDGE_NATS_CREATE_STREAMS)", d.subjects))
	case !x.rights.cover(create):
		x.Add(bridge.Fail, what, "is missing, and may not be created: no permission to publish to "+create, "allow it, or create the stream with subjects "+d.subjects)
	case refusal != "":
		x.Add(bridge.Fail, what, "is missing, and cannot be created: "+refusal, do)
	case !x.told:
		x.planned++
		x.Add(bridge.Info, what, "is missing, and whether serve may create it is not told",
			"start 'postbridge serve'; if it may not, allow publishing to "+create+", or create the stream with subjects "+d.subjects)
	case x.cfg.Replicas < goodReplicas && x.clustered():
		x.planned++
		x.Add(bridge.Warn, what, fmt.Sprintf("is missing; serve would create it with %d of the 3 replicas that survive the loss of a server", max(x.cfg.Replicas, 1)),
			"set POSTBRIDGE_NATS_REPLICAS=3 before that")
	default:
		x.planned++
		x.Add(bridge.Info, what, "is missing", "start 'postbridge serve', which creates it")
	}
}

// refusal returns why JetStream would refuse one more stream as serve creates it, and what to do; empty if that is not known.
func (x *examiner) refusal() (why, do string) {
	replicas := max(x.cfg.Replicas, 1)
	if replicas > 1 && !x.clustered() {
		return fmt.Sprintf("a server alone cannot keep %d replicas", replicas), "lower POSTBRIDGE_NATS_REPLICAS, or run a cluster"
	}
	if x.limits == nil {
		return "", ""
	}
	account, told, size := x.limits.Tier, true, max(x.cfg.MaxBytes, 1)
	if len(x.limits.Tiers) > 0 {
		account, told = x.limits.Tiers[fmt.Sprint("R", replicas)]
	} else {
		size *= int64(replicas)
	}
	l := account.Limits
	switch {
	case !told:
		return fmt.Sprintf("the account has no limits for %d replicas", replicas), "add them, or change POSTBRIDGE_NATS_REPLICAS"
	case l.MaxStreams > 0 && account.Streams+x.planned >= l.MaxStreams:
		return fmt.Sprintf("the account may have %d streams", l.MaxStreams), "raise that limit, or delete a stream that nobody needs"
	case l.MaxBytesRequired && x.cfg.MaxBytes <= 0:
		return "the account wants a limit of size for each stream", "set POSTBRIDGE_NATS_MAX_BYTES"
	case l.StoreMaxStreamBytes > 0 && x.cfg.MaxBytes > l.StoreMaxStreamBytes:
		return "the account may have no stream larger than " + bridge.SizeText(l.StoreMaxStreamBytes), "lower POSTBRIDGE_NATS_MAX_BYTES to that"
	case l.MaxStore >= 0 && int64(account.ReservedStore)+size*int64(x.planned+1) > l.MaxStore:
		return fmt.Sprintf("streams have reserved %s of the account's %s", bridge.SizeText(int64(account.ReservedStore)), bridge.SizeText(l.MaxStore)),
			"raise that limit, or lower POSTBRIDGE_NATS_MAX_BYTES"
	}
	return "", ""
}

// clustered reports whether the server is one of several.
func (x *examiner) clustered() bool { return x.conn.ConnectedClusterName() != "" }

// replicas grades on how many servers a stream is, and whether they keep up.
func (x *examiner) replicas(what string, info *jetstream.StreamInfo) {
	n := max(info.Config.Replicas, 1)
	switch {
	case x.embedded:
		x.OK(what, "has one replica, which shares the fate of this machine's disk as the spool does")
		return
	case n == 1 && !x.clustered():
		x.Add(bridge.Warn, what, "has one replica: what it acknowledged is lost with that server's disk", "run three servers as a cluster, and set its replicas to 3")
	case n < goodReplicas:
		x.Add(bridge.Warn, what, fmt.Sprintf("has %d of the 3 replicas that survive the loss of a server", n), "set its replicas to 3 (nats stream edit --replicas 3)")
	default:
		x.OK(what, fmt.Sprintf("has %d replicas", n))
	}
	if info.Cluster == nil {
		return
	}
	if info.Cluster.Leader == "" {
		x.Add(bridge.Fail, what, "has no leader, so that it takes nothing", "bring back its servers: it needs a majority of them")
	}
	for _, peer := range info.Cluster.Replicas {
		switch {
		case peer.Offline:
			x.Add(bridge.Warn, what, "lacks its replica on "+cmp.Or(peer.Name, "a server")+", which is offline", "bring that server back")
		case !peer.Current && peer.Lag > 0:
			x.Add(bridge.Warn, what, fmt.Sprintf("has a replica on %s that is %d messages behind", peer.Name, peer.Lag), "look at that server's load and disk")
		}
	}
}

// room grades what happens when a stream is full, and how near that is.
func (x *examiner) room(what string, info *jetstream.StreamInfo) {
	c, state := &info.Config, &info.State
	full := max(share(int64(state.Bytes), c.MaxBytes), share(int64(state.Msgs), c.MaxMsgs))
	switch {
	case c.MaxBytes <= 0 && c.MaxMsgs <= 0:
		x.OK(what, "has no limit of size")
	case dropsOldest(c) && x.embedded:
		x.Add(bridge.Info, what, fmt.Sprintf("drops its oldest events when it has %s, so that orders never wait for room", bridge.SizeText(c.MaxBytes)),
			"a consumer that may be away for longer than that takes needs a larger one (nats stream edit --max-bytes)")
	case dropsOldest(c): // that is a risk, which is told
	case full >= 1:
		x.Add(bridge.Fail, what, "is full, and refuses events; they wait in the spool", "raise its max_bytes or max_msgs, or lower its max_age")
	case full > 0.8:
		x.Add(bridge.Warn, what, fmt.Sprintf("is %.0f%% full, and refuses events then; they wait in the spool", 100*full),
			"raise its max_bytes or max_msgs, or lower its max_age")
	default:
		x.OK(what, fmt.Sprintf("refuses events when it is full, and is %.0f%% full", 100*full))
	}
}

// share is which part of a limit is used; 0 without a limit.
func share(used, limit int64) float64 {
	if limit <= 0 {
		return 0
	}
	return float64(used) / float64(limit)
}

// lookUps grades whether we may look up what is stored, by looking for what nobody has stored.
func (x *examiner) lookUps(ctx context.Context, d *destination, s jetstream.Stream) {
	if d.name == bridge.Deadletters {
		return // nothing is looked up there
	}
	what := "stream " + d.stream
	err := x.ask(ctx, func(ctx context.Context) error {
		_, err := s.GetLastMsgForSubject(ctx, d.prefix+string(d.name)+"."+bridge.ProbeBroker+"._._")
		return err
	})
	subject, refused := denied(err)
	switch {
	case err == nil || errors.Is(err, jetstream.ErrMsgNotFound):
		x.OK(what, "can be asked for what it has")
	case refused:
		x.Add(bridge.Warn, what, "may not be asked for what it has, so that events may be stored twice after an outage: no permission to publish to "+subject,
			fmt.Sprintf("allow $JS.API.DIRECT.GET.%s and $JS.API.DIRECT.GET.%s.> ($JS.API.STREAM.MSG.GET.%s without allow_direct)", d.stream, d.stream, d.stream))
	default:
		x.Add(bridge.Warn, what, "does not answer what it has: "+err.Error(), "look at the server's log")
	}
}

// newest grades whether the newest event has the subject that it was published to, as far as we may look.
func (x *examiner) newest(ctx context.Context, d *destination, s jetstream.Stream) {
	last := s.CachedInfo().State.LastSeq
	if last == 0 {
		return
	}
	var m *jetstream.RawStreamMsg
	err := x.ask(ctx, func(ctx context.Context) (err error) {
		m, err = s.GetMsg(ctx, last)
		return err
	})
	if err == nil && d.misplaced(m) {
		x.Add(bridge.Fail, "stream "+d.stream, misplacedWhy, misplacedDo)
	}
}

// clock compares our clock with the server's, which it told in an answer.
func (x *examiner) clock(asked, answered, told time.Time) {
	if told.IsZero() {
		return // an old server
	}
	// It was told at some time in between.
	off := time.Duration(0)
	switch {
	case told.Before(asked):
		off = asked.Sub(told)
	case told.After(answered):
		off = told.Sub(answered)
	}
	f := bridge.Finding{Area: "clock", What: "this machine's clock", Text: "agrees with that of the NATS server within " + bridge.TimeText(clockOff)}
	if off > clockOff {
		f.Grade = bridge.Warn
		f.Text = fmt.Sprintf("is %v away from that of the NATS server", off.Round(100*time.Millisecond))
		f.Do = "have both follow a time server (chrony, systemd-timesyncd)"
	}
	x.All = append(x.All, f)
}

// probe publishes a probe to the dead letters and reads it back.
func (x *examiner) probe(ctx context.Context) {
	const what = "the probe"
	p := bridge.NewProbe()
	d := newDestination(bridge.Deadletters, x.cfg.Prefix, "*")
	m := natsgo.NewMsg(d.prefix + string(d.name) + "." + bridge.ProbeBroker)
	m.Data = p.Data()
	for _, a := range p.Attributes() {
		m.Header["ce-"+a[0]] = []string{a[1]}
	}
	m.Header["ce-datacontenttype"] = []string{bridge.ContentType}
	var ack *jetstream.PubAck
	sent := time.Now()
	err := x.ask(ctx, func(ctx context.Context) (err error) {
		ack, err = x.js.PublishMsg(ctx, m, jetstream.WithExpectStream(d.stream))
		return err
	})
	if err != nil {
		x.Add(bridge.Fail, what, "is not stored on "+m.Subject+": "+err.Error(), "mend what is said of stream "+d.stream+" and of the user")
		return
	}
	stored := time.Since(sent)
	err = x.ask(ctx, func(ctx context.Context) error { return x.readBack(ctx, d, ack.Sequence, p) })
	if subject, refused := denied(err); refused {
		x.Add(bridge.Info, what, fmt.Sprintf("is stored on %s, in %v, but may not be read back", m.Subject, stored.Round(10*time.Microsecond)), "allow publishing to "+subject)
		return
	}
	if err != nil {
		x.Add(bridge.Fail, what, "is stored, but cannot be read back: "+err.Error(), "mend what is said of stream "+d.stream+", or look at the server's log")
		return
	}
	x.OK(what, fmt.Sprintf("is stored on %s, in %v, and read back, in %v", m.Subject,
		stored.Round(10*time.Microsecond), (time.Since(sent)-stored).Round(10*time.Microsecond)))
}

// readBack reads the probe, from a replica that may not have it yet.
func (x *examiner) readBack(ctx context.Context, d *destination, sequence uint64, p bridge.Probe) error {
	s, err := x.js.Stream(ctx, d.stream)
	if err != nil {
		return err
	}
	for {
		m, err := s.GetMsg(ctx, sequence)
		switch {
		case err == nil && m.Header.Get("ce-id") != p.ID:
			return errors.New("another message is in its place")
		case err == nil && d.misplaced(m):
			return fmt.Errorf("it is stored as %s: %s", m.Subject, misplacedDo)
		case !errors.Is(err, jetstream.ErrMsgNotFound):
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}
