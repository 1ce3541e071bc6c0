package imapwire

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// Star stands for "*" in a Range.
const Star = ^uint32(0)

// Range is From:To, both included, in either order until Resolve.
type Range struct{ From, To uint32 }

// Set is a sequence set (RFC 9051 sequence-set) of numbers or UIDs.
type Set []Range

// ParseSet reads a set such as "1:4,9,12:*". Zero is not a number of a set.
func ParseSet(s string) (Set, error) {
	if s == "" {
		return nil, fmt.Errorf("%w: empty set", ErrSyntax)
	}
	var set Set
	for part := range strings.SplitSeq(s, ",") {
		a, b, two := strings.Cut(part, ":")
		from, err := parseNum(a)
		if err != nil {
			return nil, err
		}
		to := from
		if two {
			if to, err = parseNum(b); err != nil {
				return nil, err
			}
		}
		set = append(set, Range{from, to})
	}
	return set, nil
}

func parseNum(s string) (uint32, error) {
	if s == "*" {
		return Star, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%w: bad number %.20q in a set", ErrSyntax, s)
	}
	return uint32(n), nil
}

// Resolve replaces "*" by last and orders every range.
func (s Set) Resolve(last uint32) Set {
	out := make(Set, 0, len(s))
	for _, r := range s {
		if r.From == Star {
			r.From = last
		}
		if r.To == Star {
			r.To = last
		}
		if r.From > r.To {
			r.From, r.To = r.To, r.From
		}
		out = append(out, r)
	}
	return out
}

// Contains reports whether n is in a resolved set.
func (s Set) Contains(n uint32) bool {
	for _, r := range s {
		if n >= r.From && n <= r.To {
			return true
		}
	}
	return false
}

// Size counts the numbers of a resolved set, doubles counted twice.
func (s Set) Size() uint64 {
	var n uint64
	for _, r := range s {
		n += uint64(r.To) - uint64(r.From) + 1
	}
	return n
}

// Numbers lists a resolved set in its own order, limit numbers at most; it
// fails above that. COPYUID pairs its two sets by this order.
func (s Set) Numbers(limit int) ([]uint32, error) {
	if s.Size() > uint64(limit) {
		return nil, fmt.Errorf("%w: set of %d numbers", ErrSyntax, s.Size())
	}
	out := make([]uint32, 0, s.Size())
	for _, r := range s {
		for n := uint64(r.From); n <= uint64(r.To); n++ {
			out = append(out, uint32(n))
		}
	}
	return out, nil
}

// FormatSet writes numbers as a compact set, in ascending order.
func FormatSet(nums []uint32) string {
	if !sort.SliceIsSorted(nums, func(i, j int) bool { return nums[i] < nums[j] }) {
		nums = append([]uint32(nil), nums...)
		sort.Slice(nums, func(i, j int) bool { return nums[i] < nums[j] })
	}
	return FormatOrdered(nums)
}

// FormatOrdered writes numbers as a set that keeps their order.
func FormatOrdered(nums []uint32) string {
	var b []byte
	for i := 0; i < len(nums); {
		j := i
		for j+1 < len(nums) && nums[j+1] == nums[j]+1 {
			j++
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(nums[i]), 10)
		if j > i {
			b = append(b, ':')
			b = strconv.AppendUint(b, uint64(nums[j]), 10)
		}
		i = j + 1
	}
	return string(b)
}
