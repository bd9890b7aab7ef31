// Package decoder turns the bytes of the pgoutput plugin (protocol version 1,
// as Postgres 15 to 18 speak it) into transactions' parts: begin, relation,
// change, truncate, message, commit.
//
// It is pure: bytes in, a value or an error out; no I/O, no clock, no log. Every
// length is checked before it is used, so truncated or hostile input gives a
// *FormatError and never a panic. Tuples are parsed in place: a decoded value
// aliases the caller's buffer, which costs no allocation per row and means that
// whoever keeps bytes copies them.
//
// An error here is final for the connection. Going on after one would confirm a
// transaction of which a part was never understood.
package decoder
