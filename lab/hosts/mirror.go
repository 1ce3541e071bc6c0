package hosts

import (
	"encoding/binary"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Mirror has copies of all frames that come in by some interfaces leave by
// another one, as a switch's mirror port does, until it is called off.
func (h *Host) Mirror(to string, from ...string) (off func() error, err error) {
	t := &nftables.Table{Name: "mirror", Family: nftables.TableFamilyNetdev}
	err = h.Do(func() error {
		ifi, err := net.InterfaceByName(to)
		if err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.AddTable(t)
		for _, f := range from {
			ch := c.AddChain(&nftables.Chain{Name: f, Table: t, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: f})
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
				&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, uint32(ifi.Index))},
				&expr.Dup{RegDev: 1, IsRegDevSet: true}}})
		}
		return c.Flush()
	})
	return func() error {
		return h.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			c.DelTable(t)
			return c.Flush()
		})
	}, err
}
