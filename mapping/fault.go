package mapping

import (
	"fmt"
	"strings"
)

// Fault is one thing that is wrong with a file.
type Fault struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // 1-based; 0 when the fault has no place
	Col     int    `json:"col"`
	Field   string `json:"field,omitempty"` // path, for example mappings[2].keys[0]
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`    // what would be right
	Excerpt string `json:"excerpt,omitempty"` // the offending line, without secrets
}

func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", f.Line, f.Col)
	}
	b.WriteString(": ")
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(f.Message)
	if f.Excerpt != "" {
		fmt.Fprintf(&b, "\n    %s", f.Excerpt)
	}
	if f.Hint != "" {
		fmt.Fprintf(&b, "\n    hint: %s", f.Hint)
	}
	return b.String()
}

// Faults is all that is wrong with a file, in the file's order.
type Faults []Fault

func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}
