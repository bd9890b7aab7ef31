package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// The normal form lower is the same in Go, which the daemon and the library share, and in Python: of
// every code point alone, and within words where what is around a letter counts elsewhere.
func TestLowerIsTheSameInPython(t *testing.T) {
	const script = `
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from cdc_keys import normal
def lower(s): return normal("lower", s)
sum = hashlib.sha256()
for i in range(0x110000):
    if not 0xd800 <= i <= 0xdfff:
        for s in (chr(i), "A" + chr(i), "A" + chr(i) + "\u0307", chr(i) + "A"):
            sum.update(lower(s) + b"\n")
print(sum.hexdigest())
for s in sys.argv[2:]:
    print(lower(bytes.fromhex(s)).hex())
`
	words := []string{"ΟΔΟΣ", "ΟΔΟΣ ΟΔΟΣ.", "οδος", "İSTANBUL", "I\u0307", "ıI", "STRASSE straße ẞ", "ǅ Ǆ ǆ", "ﬀ", "K Å Ω", "A\u0345", "\U00010400", "Ⱨ\U00010570Ʌ", "\xff\xfeA", "A\xc3", "\x00A", "e\u0301É", ""}
	args := []string{"-c", script, "../../docs/python"}
	sum := sha256.New()
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if utf8.ValidRune(r) {
			for _, s := range []string{string(r), "A" + string(r), "A" + string(r) + "\u0307", string(r) + "A"} {
				sum.Write(append(append([]byte{}, mapping.NormalLower.Of([]byte(s))...), '\n'))
			}
		}
	}
	want := hex.EncodeToString(sum.Sum(nil)) + "\n"
	for _, s := range words {
		args = append(args, fmt.Sprintf("%x", s))
		want += fmt.Sprintf("%x\n", mapping.NormalLower.Of([]byte(s)))
	}
	out, err := exec.CommandContext(t.Context(), python(t), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := string(out); got != want {
		a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Errorf("line %d (0 is the sum of all, else word n): python has %s, Go %s", i, a[i], b[i])
			}
		}
	}
}
