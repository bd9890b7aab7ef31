// Package redact says which texts may hold a password, for those who show what a person
// wrote: a line of a file, an argument of a command. Where a password ends cannot be told in
// a text that is written wrongly, so such a text is never shown in part.
package redact

import (
	"net/url"
	"regexp"
	"strings"
)

// Hidden stands for what is not shown.
const Hidden = "(secret)"

var (
	// userInfo is what an @ with a password before it, or a server behind it, looks like.
	userInfo = regexp.MustCompile(`(?s)[:/].*@|@.*[:/]`)
	// setting is a password in a list of keyword=value, in a query, or in options.
	setting = regexp.MustCompile(`(?i)(pass[a-z_]*|pwd?|secret[a-z_]*)\s*=`)
	// dsn is two settings of a connection.
	dsn = regexp.MustCompile(`(?is)\b(host|hostaddr|port|dbname|user|service|sslmode|options)\s*=.*\b(host|hostaddr|port|dbname|user|service|sslmode|options)\s*=`)
	// reference is one to a file, in a mappings file.
	reference = regexp.MustCompile(`\$\{file:/?[A-Za-z0-9_.-][A-Za-z0-9_./-]*\}`)
	// page is the address of one, with nobody's name in it.
	page = regexp.MustCompile(`^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?$`)
	// names are those of fields whose values are secrets.
	names = regexp.MustCompile(`(?i)pass|pwd|secret|token|credential|dsn|ur[li]`)
	// options is the setting that holds others.
	options = regexp.MustCompile(`(?i)\boptions\s*=|[?&][a-z_.]+=`)
)

// MayHold says whether a text may be a URL or another description of a connection, and with
// it hold a password. It errs on the side of yes.
func MayHold(text string) bool {
	if may(text) {
		return true
	}
	decoded, err := url.PathUnescape(text)
	return err == nil && decoded != text && may(decoded)
}

func may(text string) bool {
	text = reference.ReplaceAllString(text, "")
	if page.MatchString(text) {
		return false
	}
	return strings.Contains(text, "//") || strings.Contains(text, ":/") || userInfo.MatchString(text) ||
		setting.MatchString(text) || dsn.MatchString(text) || options.MatchString(text)
}

// Names says whether a field's name is that of a secret.
func Names(field string) bool { return names.MatchString(field) }

// Clean is a text, or Hidden where it may hold a password.
func Clean(text string) string {
	if MayHold(text) {
		return Hidden
	}
	return text
}
