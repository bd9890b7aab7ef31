package lsn

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	for s, want := range map[string]LSN{"0/0": 0, "16/B374D848": 0x16B374D848, "FFFFFFFF/FFFFFFFF": 1<<64 - 1, "a/b": 0xA0000000B} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("%q is %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "/", "1", "1/", "/1", "1/2/3", "1/2x", " 1/2", "1/2 ", "-1/2", "123456789/0", "0/123456789", "0x1/2", "g/1"} {
		if got, err := Parse(s); err == nil {
			t.Errorf("%q is accepted as %v", s, got)
		}
	}
	for _, s := range []string{"", "0", "00000000000000AB", "000000000000000g", "00000000000000000"} {
		if got, err := ParseHex(s); err == nil {
			t.Errorf("%q is accepted as %v", s, got)
		}
	}
}

func FuzzForms(f *testing.F) {
	f.Add(uint64(0), uint64(1))
	f.Add(uint64(1)<<63, uint64(1)<<32)
	f.Fuzz(func(t *testing.T, a, b uint64) {
		l := LSN(a)
		if got, err := Parse(l.String()); err != nil || got != l {
			t.Fatalf("%v reads back as %v, %v", l, got, err)
		}
		if got, err := ParseHex(l.Hex()); err != nil || got != l {
			t.Fatalf("%s reads back as %v, %v", l.Hex(), got, err)
		}
		if (l.Hex() < LSN(b).Hex()) != (a < b) {
			t.Fatalf("%s and %s do not compare as %d and %d", l.Hex(), LSN(b).Hex(), a, b)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("16/B374D848")
	f.Add("1/2/3")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(l.String()); err != nil || again != l {
			t.Fatalf("%q is %v, which reads as %v", s, l, again)
		}
	})
}
