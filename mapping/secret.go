package mapping

import (
	"log/slog"

	"github.com/cdc-invalidator/cdc-invalidator/internal/redact"
)

// Secret is a value that must not be printed. Reveal is the only way to it.
type Secret struct{ value string }

// NewSecret hides a value.
func NewSecret(v string) Secret { return Secret{v} }

// Reveal returns the value.
func (s Secret) Reveal() string { return s.value }

const redacted = redact.Hidden

// String, GoString, LogValue and MarshalText keep the value out of whatever a Secret
// is printed with.
func (s Secret) String() string               { return redacted }
func (s Secret) GoString() string             { return redacted }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
