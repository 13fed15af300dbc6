package bridge

import (
	"hash/maphash"
	"net/netip"
	"sync"
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
	seed maphash.Seed
	mu   sync.Mutex
	// slots hold when the last refusal expires; each refusal adds refusalInterval.
	slots [refusalSlots]time.Time
}

func newRefusalLimiter() *refusalLimiter { return &refusalLimiter{seed: maphash.MakeSeed()} }

// tooMany counts a refusal of a postback from an address, and reports whether there were too many.
func (l *refusalLimiter) tooMany(address string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	slot := &l.slots[maphash.Comparable(l.seed, clientPrefix(address))%refusalSlots]
	expires := now
	if slot.After(now) {
		expires = *slot
	}
	if expires = expires.Add(refusalInterval); expires.Sub(now) > refusalsForgotten {
		return true
	}
	*slot = expires
	return false
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
