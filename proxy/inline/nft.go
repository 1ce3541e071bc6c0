package inline

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// addTable queues a table; make it queues the table itself, too.
func addTable(c *nftables.Conn, t table, make bool) error {
	nt := &nftables.Table{Name: t.name, Family: t.family}
	if make {
		c.AddTable(nt)
	}
	for _, s := range t.sets {
		ns := &nftables.Set{Table: nt, Name: s.name, HasTimeout: s.dynamic || s.timed, Timeout: s.timeout,
			Dynamic: s.dynamic, Concatenation: len(s.fields) > 1, IsMap: s.value != nil}
		var types []nftables.SetDatatype
		for _, f := range s.fields {
			types = append(types, f.typ)
		}
		if ns.KeyType = types[0]; len(types) > 1 {
			ns.KeyType = nftables.MustConcatSetType(types...)
		}
		if s.dynamic {
			ns.Size = 65536
		}
		if s.value != nil {
			ns.DataType = s.value.typ
		}
		var elems []nftables.SetElement
		for _, e := range s.elems {
			elems = append(elems, nftables.SetElement{Key: e})
		}
		if err := c.AddSet(ns, elems); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	policy := nftables.ChainPolicyAccept
	for _, ch := range t.chains { // all of them first: rules name them
		nc := &nftables.Chain{Name: ch.name, Table: nt}
		if ch.num != nil {
			nc.Type, nc.Hooknum, nc.Priority, nc.Policy, nc.Device = nftables.ChainTypeFilter, ch.num,
				nftables.ChainPriorityRef(nftables.ChainPriority(ch.prio)), &policy, ch.device
		}
		c.AddChain(nc)
	}
	for _, ch := range t.chains {
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: nt, Chain: &nftables.Chain{Name: ch.name, Table: nt}, Exprs: r.exprs()})
		}
	}
	return nil
}

const digestPrefix = "digest_"

// tableDigest tells what a table that stays was made of: it has an empty chain
// whose name says so. It is "" where there is no such table.
func tableDigest(name string, fam nftables.TableFamily) (string, error) {
	c, err := nftables.New()
	if err != nil {
		return "", fmt.Errorf("nftables: %w", err)
	}
	chains, err := c.ListChainsOfTableFamily(fam)
	if err != nil {
		return "", fmt.Errorf("nftables: %w", err)
	}
	found := ""
	for _, ch := range chains {
		if ch.Table.Name != name {
			continue
		}
		if d, ok := strings.CutPrefix(ch.Name, digestPrefix); ok {
			return d, nil
		}
		found = "unknown"
	}
	return found, nil
}

func (i tableItem) set(gone bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	nt := &nftables.Table{Name: i.t.name, Family: i.t.family}
	// In one batch: removed if it is there, and made anew.
	c.AddTable(nt)
	c.DelTable(nt)
	if !gone {
		t := i.t
		t.chains = append(t.chains[:len(t.chains):len(t.chains)], chain{name: digestPrefix + i.digest})
		if err := addTable(c, t, true); err != nil {
			return err
		}
	}
	return c.Flush()
}

// owner is the socket that owns tables: they go when it is closed, however
// that happens.
type owner struct {
	c  *nftables.Conn
	nl *mdlayher.Conn
}

// ErrOwned means that another process diverts already.
var ErrOwned = errors.New("another understudy diverts traffic on this machine")

func newOwner() (*owner, error) {
	o := &owner{}
	var err error
	o.c, err = nftables.New(nftables.AsLasting(),
		nftables.WithSockOptions(func(nl *mdlayher.Conn) error { o.nl = nl; return nil }))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return o, nil
}

func (o *owner) close() error { return o.c.CloseLasting() }

// make makes an owned table. The library cannot set the flag, so the table
// itself is asked for by hand.
func (o *owner) make(t table) error {
	err := o.flagged(t)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("table %s: %w: %w", t.name, ErrOwned, err)
	}
	if err != nil {
		return fmt.Errorf("table %s: %w (tables with an owner need Linux 5.12)", t.name, err)
	}
	if err := addTable(o.c, t, false); err != nil {
		return err
	}
	if err := o.c.Flush(); err != nil {
		return fmt.Errorf("table %s: %w", t.name, err)
	}
	return nil
}

// remake makes an owned table anew.
func (o *owner) remake(t table) error {
	if err := o.drop(t); err != nil {
		return err
	}
	return o.make(t)
}

// drop removes an owned table, if it is there.
func (o *owner) drop(t table) error {
	nt := &nftables.Table{Name: t.name, Family: t.family}
	o.c.DelTable(nt)
	if err := o.c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("table %s: %w", t.name, err)
	}
	return nil
}

func (o *owner) flagged(t table) error {
	const ownerFlag = 2 // NFT_TABLE_F_OWNER
	attrs, err := mdlayher.MarshalAttributes([]mdlayher.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(t.name + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: []byte{0, 0, 0, ownerFlag}}})
	if err != nil {
		return err
	}
	head := func(fam byte, res uint16) []byte { return append([]byte{fam, unix.NFNETLINK_V0}, be16(res)...) }
	msgs := []mdlayher.Message{
		{Header: mdlayher.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: mdlayher.Request},
			Data: head(0, unix.NFNL_SUBSYS_NFTABLES)},
		{Header: mdlayher.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
			Flags: mdlayher.Request | mdlayher.Acknowledge | mdlayher.Create | mdlayher.Excl},
			Data: append(head(byte(t.family), 0), attrs...)},
		{Header: mdlayher.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: mdlayher.Request},
			Data: head(0, unix.NFNL_SUBSYS_NFTABLES)},
	}
	if _, err := o.nl.SendMessages(msgs); err != nil {
		return err
	}
	_, err = o.nl.Receive()
	return err
}

// past counts the connections that ran past the box lately.
func past() (int, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, f := range families() {
		e, err := c.GetSetElements(&nftables.Set{
			Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}, Name: "past" + f.n})
		if err != nil {
			return 0, fmt.Errorf("connections past the box: %w", err)
		}
		n += len(e)
	}
	return n, nil
}

// beat renews what is armed, in one batch: an element that is added again
// keeps its old time.
func (o *owner) beat(services []netip.AddrPort, cut bool, lives time.Duration) error {
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}
	for _, f := range families() {
		var elems []nftables.SetElement
		for _, s := range services {
			if f.of(s.Addr()) {
				elems = append(elems, nftables.SetElement{Key: serviceKey(s.Addr(), s.Port()), Timeout: lives})
			}
		}
		for _, name := range []string{"armed", "cut"} {
			s := &nftables.Set{Table: t, Name: name + f.n, HasTimeout: true, Concatenation: true,
				KeyType: nftables.MustConcatSetType(f.dst.typ, nftables.TypeInetService)}
			o.c.FlushSet(s)
			if len(elems) > 0 && (name == "armed" || cut) {
				if err := o.c.SetAddElements(s, elems); err != nil {
					return err
				}
			}
		}
	}
	return o.c.Flush()
}
