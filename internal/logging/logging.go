// Package logging makes the program's one *slog.Logger. Logrus is the backend
// that formats and writes; everything else sees slog only.
package logging

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	logrusslog "github.com/sirupsen/logrus/hooks/slog"
)

// Format is how a record is written.
type Format string

// Text is for people (coloured on a terminal, logfmt otherwise), JSON for log
// collectors: one object a line.
const (
	Text Format = "text"
	JSON Format = "json"
)

// timeFormat keeps milliseconds, which RFC 3339 alone drops: the budgets that
// these lines are read against are fractions of a second.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// ParseFormat reads the value of --log-format.
func ParseFormat(s string) (Format, error) {
	switch f := Format(strings.ToLower(s)); f {
	case Text, JSON:
		return f, nil
	}
	return "", fmt.Errorf("log format %q: want text or json", s)
}

// ParseLevel reads the value of --log-level.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q: want debug, info, warn or error", s)
}

// New returns a logger that writes records of at least the given level to w.
// Times are UTC, so that lines compare with the server logs' and with each
// other across machines. Attributes become fields, groups a dotted prefix.
func New(w io.Writer, format Format, level slog.Level) *slog.Logger {
	backend := logrus.New()
	backend.SetOutput(w)
	backend.SetLevel(mapLevel(level))
	if format == JSON {
		backend.SetFormatter(&formatter{next: &logrus.JSONFormatter{
			TimestampFormat:   timeFormat,
			DisableHTMLEscape: true,
		}})
	} else {
		backend.SetFormatter(&formatter{next: &logrus.TextFormatter{
			FullTimestamp:    true,
			TimestampFormat:  timeFormat,
			QuoteEmptyFields: true,
		}})
	}
	return slog.New(logrusslog.NewHandler(backend, &logrusslog.HandlerOptions{LevelMapper: mapLevel}))
}

// mapLevel stops at error: logrus's fatal and panic levels mean "end the
// process" to whoever reads the log, and no log line of ours does that.
func mapLevel(l slog.Level) logrus.Level {
	switch {
	case l >= slog.LevelError:
		return logrus.ErrorLevel
	case l >= slog.LevelWarn:
		return logrus.WarnLevel
	case l >= slog.LevelInfo:
		return logrus.InfoLevel
	default:
		return logrus.DebugLevel
	}
}

// formatter settles how values look before logrus formats them. Logrus's JSON
// encodes a type by its underlying kind, so a position would be a bare number,
// a duration a count of nanoseconds, and a secret whose String redacts it would
// be printed in full.
type formatter struct{ next logrus.Formatter }

func (f *formatter) Format(e *logrus.Entry) ([]byte, error) {
	fields := make(logrus.Fields, len(e.Data))
	for k, v := range e.Data {
		fields[k] = plain(v)
	}
	// The entry's Data may be shared with the handler that other goroutines log
	// through, hence a copy of the entry and never a write into the map.
	c := *e
	c.Data = fields
	c.Time = e.Time.UTC()
	return f.next.Format(&c)
}

func plain(v any) any {
	switch v := v.(type) {
	case error:
		return v.Error()
	case time.Time:
		return v.UTC().Format(timeFormat)
	case json.Marshaler:
		return v
	case fmt.Stringer:
		return v.String()
	}
	return v
}
