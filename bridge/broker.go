package bridge

import "github.com/postbridge/postbridge/bridge/event"

// Broker turns the postbacks of one stock broker into orders. An implementation is pure: it does no I/O, keeps no
// state between calls and is safe for concurrent use. It owns none of the bytes it is given and keeps none of them.
type Broker interface {
	// Name returns the name of the broker in routes, subjects and metrics: lower-case letters only.
	Name() string

	// Verify checks that the postback is genuine and returns what proves it (the event's verified_by). An error is a
	// *Refusal: it contains neither a secret nor an expected value. All comparisons take constant time.
	Verify(p *Postback) (verifiedBy string, err error)

	// Normalize returns the order that the members of the body describe, which are in the sequence of the body. It is
	// called after Verify, and only if the body is a JSON object, or empty: then there are no members. The error
	// NotAnOrder means that the body is recognized and is no order update; it is published as such. Any other error
	// means that the members cannot be understood; the postback becomes a dead letter.
	Normalize(members []event.Member) (event.Order, error)

	// State returns the part of the order's state in one member of the body, in one spelling for all values that mean
	// the same; the event id is a hash of it. It returns "" for a member without state, and for one that is known to
	// differ between two deliveries of one state. Such a member needs evidence: a postback in which nothing else
	// changes is not published. A member that the adapter does not know returns its value.
	State(m event.Member) string
}

// NotAnOrder is the error of Normalize for a body that the adapter recognizes and that is no order update. Its value is
// the kind of the body, one of a fixed list of the adapter, in lower-case letters and _. The event has it as other.
type NotAnOrder string

func (n NotAnOrder) Error() string { return "the body is no order update but " + string(n) }

// PolicyBroker is a Broker with a Policy. A Broker without the method has the zero Policy.
type PolicyBroker interface {
	Broker
	Policy() Policy
}

// Policy changes how the receiver treats the requests of one broker. The zero value changes nothing.
type Policy struct {
	// AnswerProbes answers GET and HEAD on every path below /<broker> with 200, unverified: the broker requests a URL
	// before it is registered as the address of postbacks.
	AnswerProbes bool
	// KeepUnreadable answers 200 to a verified postback whose body cannot be read (too large, incomplete, or not
	// encoded as its header says), and publishes the part that arrived as a dead letter. Otherwise such a postback is
	// refused.
	KeepUnreadable bool
	// Personal lists the names, in lower case, of members that are personal data. No event contains them. State returns
	// "" for them, because a short secret can be guessed from a hash.
	Personal []string
}

// policyOf returns the policy of an adapter. A type that wraps the adapter hides the policy.
func policyOf(b Broker) Policy {
	if p, ok := b.(PolicyBroker); ok {
		return p.Policy()
	}
	return Policy{}
}

// Refusal is the error of Verify for a postback that is not genuine.
type Refusal struct {
	// Status is the HTTP status of the answer: 400, 401, 403 or 404.
	Status int
	// Reason is the label of postbridge_refused_total: route, not_json, token, app_id, checksum, repeated_key,
	// client_id or user_id. The bridge's own are route, too_large, incomplete, encoding and busy. It is counted when
	// the answer is 429, too.
	Reason string
	// Detail is the sentence in the answer and in the log. It never contains an expected value.
	Detail string
	// Remedy is what the operator can do if the postback is genuine. It is logged and not answered. A text from the
	// body is cut to a few characters and escaped in it.
	Remedy string
}

func (r *Refusal) Error() string { return r.Detail }

// Refuse returns a *Refusal as an error.
func Refuse(status int, reason, detail string) *Refusal {
	return &Refusal{Status: status, Reason: reason, Detail: detail}
}
