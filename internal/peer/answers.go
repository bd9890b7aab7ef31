package peer

import (
	"encoding/binary"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/cdc-invalidator/cdc-invalidator/internal/redact"
)

// What an answer has to begin with. Short forms would be met by chance, or by the next
// protocol.
var (
	redisLine = regexp.MustCompile(`^(\+PONG\r\n|-(ERR|NOAUTH|DENIED|NOPERM|LOADING|BUSY|MASTERDOWN|MISCONF|CLUSTERDOWN) [ -~]{4,})`)
	httpLine  = regexp.MustCompile(`(?i)^(HTTP/[0-9]\.[0-9] [0-9]{3}|<!DOCTYPE |<html|<\?xml )`)
	greetings = []struct {
		protocol Protocol
		form     *regexp.Regexp
	}{
		{SSH, regexp.MustCompile(`^SSH-[0-9]\.[0-9]+-`)},
		{SMTP, regexp.MustCompile(`(?i)^(220|421|554)[ -][ -~]*SMTP`)},
		{FTP, regexp.MustCompile(`(?i)^220[ -][ -~]*FTP`)},
		{POP3, regexp.MustCompile(`^\+OK [ -~]*\r\n`)},
		{IMAP, regexp.MustCompile(`^\* (OK|PREAUTH|BYE) [ -~]*`)},
	}
)

func ofGreeting(text []byte) Protocol {
	for _, g := range greetings {
		if g.form.Match(text) {
			return g.protocol
		}
	}
	if isMySQL(text) {
		return MySQL
	}
	return ofAnswer(text) // such as a Redis that has no connection to spare
}

func ofAnswer(text []byte) Protocol {
	switch {
	case redisLine.Match(text):
		return Redis
	case httpLine.Match(text):
		return HTTP
	case strings.HasPrefix(string(text), "ERROR\r\n"):
		return Memcached
	case isErrorMessage(text):
		return Postgres
	case len(text) >= 7 && text[0] == 0x15 && text[1] == 3 && text[2] <= 4 && text[3] == 0 && text[4] == 2: // an alert
		return TLS
	}
	return Unknown
}

// isErrorMessage recognises an ErrorResponse of Postgres: a plausible length, and the field
// with the severity.
func isErrorMessage(text []byte) bool {
	if len(text) < 8 || text[0] != 'E' || text[5] != 'S' || text[6] < ' ' {
		return false
	}
	length := binary.BigEndian.Uint32(text[1:5])
	return length >= 8 && length < 1<<16
}

// isMySQL recognises the first packet of a MySQL or a MariaDB: version 10 of the handshake
// with the server's version, or an error in its place.
func isMySQL(text []byte) bool {
	if len(text) < 10 || text[3] > 1 {
		return false
	}
	length := int(text[0]) | int(text[1])<<8 | int(text[2])<<16
	if length < 6 || length > 4096 || length+4 > len(text) && len(text) < 256 {
		return false
	}
	switch text[4] {
	case 10:
		version, _, ok := strings.Cut(string(text[5:]), "\x00")
		return ok && version != "" && version[0] >= '0' && version[0] <= '9' && isPrintable(version)
	case 0xff:
		return isPrintable(string(text[7:min(len(text), length+4)]))
	}
	return false
}

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) })
}

// shown is the beginning of an answer as a message may have it.
func shown(said []byte) string {
	const most = 40
	if len(said) == 0 {
		return ""
	}
	if text := strings.TrimSpace(string(said)); redact.MayHold(text) {
		return "an answer of " + strconv.Itoa(len(said)) + " bytes that is not shown"
	}
	more := ""
	if len(said) > most {
		said, more = said[:most], "..."
	}
	return strconv.QuoteToASCII(string(said)) + more
}
