package keytype

import (
	"net"
	"net/netip"
	"strconv"
)

// appendIP is for package net, where one address has two lengths, and pgx sends them as two
// addresses.
func (t *Type) appendIP(dst []byte, ip net.IP, ones int) ([]byte, refusal) {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok || ones < 0 {
		return nil, outOfRange
	}
	if addr.Is4In6() {
		return nil, "of 16 bytes may mean an IPv4 or an IPv6 address"
	}
	return t.appendPrefix(dst, netip.PrefixFrom(addr, ones))
}

// appendPrefix is an address with its network. An inet shows the length only where it is
// not that of one host.
func (t *Type) appendPrefix(dst []byte, p netip.Prefix) ([]byte, refusal) {
	switch t.Form {
	case Inet, CIDR:
	default:
		return nil, mismatch
	}
	a := p.Addr()
	if !p.IsValid() || a.Zone() != "" || t.Form == CIDR && p.Masked() != p {
		return nil, outOfRange
	}
	dst = appendAddr(dst, a)
	if t.Form == CIDR || p.Bits() < a.BitLen() {
		dst = strconv.AppendInt(append(dst, '/'), int64(p.Bits()), 10)
	}
	return dst, ""
}

// appendAddr is an address as Postgres prints it. It shows the last 32 bits of an IPv6 address
// that has nothing but zeros before as those of an IPv4 address, which Go does not.
func appendAddr(dst []byte, a netip.Addr) []byte {
	if b := a.As16(); a.Is6() && !a.Is4In6() && [12]byte(b[:12]) == [12]byte{} && (b[12] != 0 || b[13] != 0) {
		return netip.AddrFrom4([4]byte(b[12:])).AppendTo(append(dst, "::"...))
	}
	return a.AppendTo(dst)
}

func (t *Type) appendMAC(dst []byte, a net.HardwareAddr) ([]byte, refusal) {
	switch {
	case t.Form != MAC && t.Form != MAC8:
		return nil, mismatch
	case t.Form == MAC && len(a) != 6 || t.Form == MAC8 && len(a) != 8:
		return nil, outOfRange
	}
	return append(dst, a.String()...), ""
}
