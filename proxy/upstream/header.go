package upstream

import (
	"encoding/binary"

	"understudy/proxy/seam"
)

// proxyHeader is the PROXY protocol's version 2 header for TCP.
func proxyHeader(c seam.Client) []byte {
	b := []byte("\r\n\r\n\x00\r\nQUIT\n")
	src, dst := c.Addr, c.Local
	if !src.IsValid() || !dst.IsValid() || src.Addr().Is4() != dst.Addr().Is4() {
		return append(b, 0x20, 0x00, 0, 0) // LOCAL
	}
	fam, n := byte(0x11), 12
	if src.Addr().Is6() {
		fam, n = 0x21, 36
	}
	b = append(b, 0x21, fam, 0, byte(n))
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}
