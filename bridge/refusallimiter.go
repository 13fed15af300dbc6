package bridge

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// Refusals from one address beyond refusalBurst, and one each refusalInterval from then on, are answered 429.
const (
	refusalBurst    = 60
	refusalInterval = time.Second
	// refusalsForgotten is how long an address at the limit takes to get back its whole burst.
	refusalsForgotten = refusalBurst * refusalInterval
	refusalSlots      = 4096
)

// refusalLimiter counts refusals by address. It limits what answers reveal, never what is accepted: every postback is
// verified, since behind a proxy all of them come from one address.
//
// Addresses are hashed to a fixed number of slots, with a random seed, so that no flood of addresses grows it or
// evicts a count. Addresses that share a slot share its limit.
type refusalLimiter struct {
	seed  maphash.Seed
	start time.Time
	// slots hold when the last refusal expires, in nanoseconds since start; each refusal adds refusalInterval.
	slots [refusalSlots]atomic.Int64
}

func newRefusalLimiter() *refusalLimiter {
	return &refusalLimiter{seed: maphash.MakeSeed(), start: time.Now()}
}

// tooMany counts a refusal of a postback from an address, and reports whether there were too many.
func (l *refusalLimiter) tooMany(address string, now time.Time) bool {
	slot := &l.slots[maphash.Comparable(l.seed, clientPrefix(address))%refusalSlots]
	at := int64(now.Sub(l.start))
	for {
		until := slot.Load()
		next := max(until, at) + int64(refusalInterval)
		if next-at > int64(refusalsForgotten) {
			return true
		}
		if slot.CompareAndSwap(until, next) {
			return false
		}
	}
}

// clientPrefix returns the addresses that one client is assumed to have: an IPv4 address, or the /64 of an IPv6
// address; the zero value for anything else. X-Forwarded-For is ignored, since clients can write it.
func clientPrefix(address string) netip.Prefix {
	of, _ := netip.ParseAddrPort(address)
	ip := of.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits) // the zero value of the zero address
	return prefix
}
