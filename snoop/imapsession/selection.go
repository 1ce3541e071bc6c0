package imapsession

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// maxMessages bounds the numbers believed of an EXISTS line.
const maxMessages = 1 << 26

// selection is the open mailbox of a session, and the one that is being opened.
type selection struct {
	Box   *Box   // nil: none is selected
	Doubt string // why the session cannot go on with another upstream; "" if it can

	opening *Box
	differs difference
}

func (s *selection) doubt(why string) {
	if s.Doubt == "" {
		s.Doubt = why
	}
}

// target is the mailbox that untagged data is about.
func (s *selection) target(oldest *Exchange) *Box {
	if oldest == nil || !oldest.Verb.Opens() {
		return s.Box
	}
	if s.opening == nil {
		s.opening = &Box{}
	}
	return s.opening
}

// answered follows a tagged answer; opened tells that a mailbox was selected.
func (s *selection) answered(ex *Exchange, r *imapwire.Response) (opened bool) {
	ok := r.Name == "OK"
	switch {
	case ex.Verb.Opens():
		box := s.opening
		s.opening, s.Box = nil, nil
		if !ok {
			return false
		}
		if box == nil {
			box = &Box{}
		}
		box.Name = ex.Mailbox
		box.ReadOnly = r.Code == "READ-ONLY" || ex.Verb == imapwire.Examine
		s.Box, s.differs = box, difference{}
		return true
	case ex.Verb.Leaves() && ok:
		s.Box = nil
	case ex.Verb == imapwire.Append && ok && r.Code == "APPENDUID" && s.Box != nil && s.Box.Name == ex.Mailbox:
		s.Box.appended(r.Arg)
	}
	return false
}

// code follows the response code of an untagged status.
func (s *selection) code(r *imapwire.Response, oldest *Exchange) {
	number := func() uint32 {
		v, _ := strconv.ParseUint(string(r.Arg), 10, 32)
		return uint32(v)
	}
	switch r.Code {
	case "UIDVALIDITY":
		if b := s.target(oldest); b != nil {
			b.UIDValidity = number()
		}
	case "UIDNEXT":
		if b := s.target(oldest); b != nil {
			b.UIDNext = number()
		}
	case "COPYUID":
		if oldest != nil {
			oldest.Heard.CopyUID = bytes.Clone(r.Arg)
		}
	}
}

// untagged follows untagged data. hint tells that another client's change was
// told, or one that no command asked for.
func (s *selection) untagged(r *imapwire.Response, oldest *Exchange) (hint bool) {
	box := s.target(oldest)
	switch r.Name {
	case "EXISTS":
		return s.exists(r.Num, box)
	case "EXPUNGE":
		return s.expunge(r.Num, box, oldest)
	case "FETCH":
		return s.fetch(r, box, oldest)
	case "SEARCH", "ESEARCH":
		if oldest != nil {
			oldest.Heard.Searched = true
		}
	case "VANISHED":
		s.doubt("VANISHED without QRESYNC")
		return true
	}
	return false
}

func (s *selection) exists(n uint32, box *Box) (hint bool) {
	if box == nil || n > maxMessages {
		s.doubt("EXISTS without a mailbox")
		return false
	}
	if int(n) < len(box.View) {
		s.doubt("EXISTS shrinks")
		box.own()
		box.View = box.View[:n]
	}
	if add := int(n) - len(box.View); add > 0 {
		box.grow(make([]uint32, add))
		return box == s.Box
	}
	return false
}

func (s *selection) expunge(n uint32, box *Box, oldest *Exchange) (hint bool) {
	if box == nil || n == 0 || int(n) > len(box.View) {
		s.doubt("EXPUNGE of no message")
		return false
	}
	box.own()
	uid := box.View[n-1]
	box.View = append(box.View[:n-1], box.View[n:]...)
	switch {
	case oldest == nil || !oldest.Verb.Expunges():
		return true
	case uid == 0:
		oldest.Unknown = true
	default:
		oldest.Heard.Expunged = append(oldest.Heard.Expunged, uid)
	}
	return false
}

func (s *selection) fetch(r *imapwire.Response, box *Box, oldest *Exchange) (hint bool) {
	n := r.Num
	if box == nil || n == 0 || int(n) > len(box.View) {
		s.doubt("FETCH of no message")
		return false
	}
	it := imapwire.ParseFetchHead(r.Rest)
	box.blind = box.blind || it.UID == 0 && box.View[n-1] == 0 && !onlyFlags(r.Rest)
	if it.UID != 0 && box.View[n-1] != it.UID {
		if box.View[n-1] != 0 {
			s.doubt("UID of a message changed")
		}
		box.own()
		box.View[n-1] = it.UID
	}
	fetches := oldest != nil && oldest.Verb == imapwire.Fetch
	if fetches && box.View[n-1] != 0 {
		oldest.Heard.Delivered = append(oldest.Heard.Delivered, box.View[n-1])
	}
	if !it.HasFlags {
		return false
	}
	it.UID = box.View[n-1]
	switch {
	case fetches:
		// A FETCH of BODY[] sets \Seen; the flags told are of that kind, too.
		return oldest.setsSeen
	case oldest != nil && oldest.Verb == imapwire.Store:
		if it.UID == 0 {
			oldest.Unknown = true
			return false
		}
		oldest.Heard.Fetched = append(oldest.Heard.Fetched, it)
		return false
	}
	return true
}

// onlyFlags reports whether a FETCH response holds flags and nothing that would
// make the message known.
func onlyFlags(rest []byte) bool {
	up := bytes.ToUpper(rest)
	for _, w := range []string{"BODY", "ENVELOPE", "RFC822", "INTERNALDATE", "BINARY", "{"} {
		if bytes.Contains(up, []byte(w)) {
			return false
		}
	}
	return true
}

// Ahead returns the selected mailbox if the client was told UIDs in it of messages
// that the replica may not have yet: were production lost now, they would be gone.
func (s *selection) Ahead() (mailbox string) {
	if s.Box == nil || len(s.Box.View) == 0 || s.Box.View[len(s.Box.View)-1] <= s.Box.Held {
		return ""
	}
	return s.Box.Name
}

// Lacks reports whether sn, what the replica holds of the mailbox that Ahead
// named, lacks such messages. It is reported once for each.
func (s *selection) Lacks(sn *row.Snapshot) bool {
	if s.Ahead() == "" || sn == nil || !sn.Synced || sn.OnProduction() != s.Box.UIDValidity {
		return false // it is still being copied
	}
	return s.Box.lacks(sn)
}

// Open completes the selection of a mailbox: virtual is what its UIDVALIDITY is
// shown as, 0 if as it is. Where what the replica held before proves it, the view
// is certain.
func (s *selection) Open(ex *Exchange, virtual uint32, production bool) {
	box, sn := s.Box, ex.Kept.Before
	if box == nil {
		return
	}
	st := BoxState{UIDValidity: box.UIDValidity, UIDNext: box.UIDNext, Exists: len(box.View)}
	if box.Shown = st.UIDValidity; virtual != 0 {
		box.Shown = virtual
	}
	if Same(sn, production, st) {
		box.ModSeq = sn.ModSeq
	}
	if uids, ok := Proves(sn, production, st); ok {
		box.seed(uids)
	}
}

// concerns is the mailbox whose UIDVALIDITY a line tells, and the word that the
// number stands behind; "" if it tells none.
func concerns(r *imapwire.Response, ex *Exchange) (word, mailbox string) {
	switch {
	case r.Name == "STATUS" && r.Tag == "*":
		return "UIDVALIDITY ", imapwire.NewReader(r.Rest).Mailbox()
	case ex == nil:
	case r.Code == "COPYUID":
		return "[COPYUID ", ex.Target()
	case (r.Code == "UIDVALIDITY" || r.Code == "APPENDUID") && (ex.Verb.Opens() || ex.Verb == imapwire.Append):
		return "[" + r.Code + " ", ex.Mailbox
	}
	return "", ""
}

// WithNumber replaces the number behind the last occurrence of word in a line; nil
// if there is none.
func WithNumber(line []byte, word string, with uint32) []byte {
	i := strings.LastIndex(strings.ToUpper(string(line)), word)
	if i < 0 {
		return nil
	}
	i += len(word)
	j := i
	for j < len(line) && line[j] >= '0' && line[j] <= '9' {
		j++
	}
	out := append([]byte(nil), line[:i]...)
	out = strconv.AppendUint(out, uint64(with), 10)
	return append(out, line[j:]...)
}

// Missed is what may have changed of the selected mailbox while the session was moved:
// flags of messages after a MODSEQ of the replica, if Since is set, and of some others.
type Missed struct {
	Since uint64
	Also  []uint32
	Any   bool
}

// Reopened compares the client's view with what another upstream has: st, its UIDs,
// and what the replica had as MODSEQ, 0 if that is not certain.
func (s *selection) Reopened(st BoxState, uids []uint32, modseq uint64) (m Missed, err error) {
	box := s.Box
	if m.Also, err = box.Fill(uids); err != nil {
		return m, err
	}
	var fresh []uint32
	s.differs.numbers, fresh = NewNumbers(box.View, uids)
	box.grow(fresh)
	s.differs.exists = s.differs.exists || len(fresh) > 0
	m.Since, m.Any = box.ModSeq, box.ModSeq > 0 && modseq > box.ModSeq || len(m.Also) > 0
	box.UIDValidity, box.UIDNext = st.UIDValidity, st.UIDNext
	if modseq > 0 {
		box.ModSeq = modseq
	}
	return m, nil
}

// Changed tells flags of messages that the client has still to be told, beside those
// of an earlier move.
func (s *selection) Changed(flags []row.FlagsOf) {
	earlier := slices.DeleteFunc(slices.Clone(s.differs.flags), func(e row.FlagsOf) bool {
		return slices.ContainsFunc(flags, func(f row.FlagsOf) bool { return f.UID == e.UID })
	})
	s.differs.flags = append(earlier, flags...)
}

// Grew takes an EXISTS of the server that is heard while a unit is completed.
func (s *selection) Grew(count uint32) {
	s.Box.grow(make([]uint32, max(0, int(s.differs.numbers.Exists(count))-len(s.Box.View))))
	s.differs.exists = true
}
