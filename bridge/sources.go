package bridge

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// Refusals from one source beyond this many at once, and one every refusalInterval from then on, are answered 429.
const (
	refusalBurst    = 60
	refusalInterval = time.Second
	// forgetAfter is when a source that had too many has none any more.
	forgetAfter = refusalBurst * refusalInterval
)

// numSources is how many counts there are. It is a power of two.
const numSources = 4096

// sources counts refusals by where they come from. It limits what the answers tell, and never what is taken: the proof of
// each postback is looked at, since behind a proxy all of them come from one source.
//
// The counts are a fixed number of slots that sources are hashed to, with a seed that nobody outside knows. Nothing is
// kept of a source itself, so nothing has to make room for another, and no flood of addresses takes a count away. Two
// sources that share a slot share its limit, which costs neither a postback that is proven.
type sources struct {
	seed  maphash.Seed
	begun time.Time
	// slots are when the refusals of each will be forgotten, in nanoseconds since begun: each adds refusalInterval.
	slots [numSources]atomic.Int64
}

func newSources() *sources { return &sources{seed: maphash.MakeSeed(), begun: time.Now()} }

// tooMany counts a refusal of a postback from an address, and reports whether its source has had too many.
func (s *sources) tooMany(address string, now time.Time) bool {
	source := sourceOf(address)
	slot := &s.slots[maphash.Comparable(s.seed, source)%numSources]
	at := int64(now.Sub(s.begun))
	for {
		until := slot.Load()
		next := max(until, at) + int64(refusalInterval)
		if next-at > int64(forgetAfter) {
			return true
		}
		if slot.CompareAndSwap(until, next) {
			return false
		}
	}
}

// sourceOf is what one sender can be assumed to have: an IPv4 address, or 64 bits of an IPv6 one, of which a sender gets
// all addresses. The zero value is for what is not an address. X-Forwarded-For is not looked at: anybody can write it.
func sourceOf(address string) netip.Addr {
	of, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Addr{}
	}
	ip := of.Addr().Unmap()
	if ip.Is6() {
		prefix, _ := ip.WithZone("").Prefix(64) // an IPv6 address has so many bits
		ip = prefix.Addr()
	}
	return ip
}
