package imapsession

import (
	"slices"

	"understudy/snoop/imapwire"
)

// Numbers translates message numbers between a client's view of a mailbox and
// that of another server, while they differ: a ghost is a message that the
// client counts and the server has not, a hidden one the reverse (which the
// client was told is gone). The zero value translates nothing.
type Numbers struct {
	kinds []kind // in the order of UIDs; nil: both count alike
}

type kind uint8

const (
	both kind = iota
	ghost
	hidden
)

// NewNumbers compares views. fresh are the server's UIDs behind all that the
// client knows, which it has still to be told of; they count for both.
func NewNumbers(client, server []uint32) (n Numbers, fresh []uint32) {
	if slices.Equal(client, server) {
		return n, nil
	}
	i, j, differ := 0, 0, false
	for i < len(client) {
		switch {
		case j < len(server) && client[i] == server[j]:
			n.kinds = append(n.kinds, both)
			i++
			j++
		case client[i] != 0 && j < len(server) && server[j] < client[i]:
			n.kinds = append(n.kinds, hidden)
			differ = true
			j++
		default:
			n.kinds = append(n.kinds, ghost)
			differ = true
			i++
		}
	}
	fresh = server[j:]
	if !differ {
		return Numbers{}, fresh
	}
	return Numbers{append(n.kinds, make([]kind, len(fresh))...)}, fresh
}

// Same reports whether nothing is translated.
func (n *Numbers) Same() bool { return n.kinds == nil }

// index finds the entry of a number counted without those of a kind.
func (n *Numbers) index(num uint32, without kind) (entry int, other uint32) {
	for i, k := range n.kinds {
		if k != without {
			if num--; num == 0 {
				return i, other + 1
			}
		}
		if k == both || k == without {
			other++
		}
	}
	return -1, 0
}

// Server translates a client's number; ok is false for a ghost, and for one
// that the client does not count.
func (n *Numbers) Server(num uint32) (uint32, bool) {
	if n.Same() {
		return num, true
	}
	i, other := n.index(num, hidden)
	return other, i >= 0 && n.kinds[i] == both
}

// Client translates a server's number; ok is false for a hidden message.
func (n *Numbers) Client(num uint32) (uint32, bool) {
	if n.Same() {
		return num, true
	}
	i, other := n.index(num, ghost)
	return other, i >= 0 && n.kinds[i] == both
}

// counts returns how many messages each side counts.
func (n *Numbers) counts() (client, server uint32) {
	for _, k := range n.kinds {
		if k != hidden {
			client++
		}
		if k != ghost {
			server++
		}
	}
	return client, server
}

// Set translates a set of the client's; ok is false if nothing is left of it.
func (n *Numbers) Set(s imapwire.Set) (out string, ok bool) {
	count, _ := n.counts()
	s = s.Resolve(count)
	var nums []uint32
	client, server := uint32(0), uint32(0)
	for _, k := range n.kinds {
		if k != hidden {
			client++
		}
		if k != ghost {
			server++
		}
		if k == both && s.Contains(client) {
			nums = append(nums, server)
		}
	}
	if len(nums) == 0 {
		return "", false
	}
	return imapwire.FormatSet(nums), true
}

// Exists takes the server's count of messages and returns the client's.
func (n *Numbers) Exists(count uint32) uint32 {
	if n.Same() {
		return count
	}
	client, server := n.counts()
	for ; server < count; server++ {
		n.kinds = append(n.kinds, both)
		client++
	}
	return client
}

// Expunge takes out a message of the server's. ok is false if the client does
// not count it.
func (n *Numbers) Expunge(num uint32) (client uint32, ok bool) {
	if n.Same() {
		return num, true
	}
	i, other := n.index(num, ghost)
	if i < 0 {
		return 0, false
	}
	ok = n.kinds[i] == both
	n.kinds = slices.Delete(n.kinds, i, i+1)
	n.settle()
	return other, ok
}

// Ghosts takes the ghosts out and returns their numbers, highest first, as the
// client is to be told that they are gone.
func (n *Numbers) Ghosts() []uint32 {
	var out []uint32
	num := uint32(0)
	for _, k := range n.kinds {
		if k != hidden {
			num++
		}
		if k == ghost {
			out = append(out, num)
		}
	}
	n.kinds = slices.DeleteFunc(n.kinds, func(k kind) bool { return k == ghost })
	n.settle()
	slices.Reverse(out)
	return out
}

// settle ends the translation when both count alike again.
func (n *Numbers) settle() {
	if !slices.ContainsFunc(n.kinds, func(k kind) bool { return k != both }) {
		n.kinds = nil
	}
}
