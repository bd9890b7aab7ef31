package keytype_test

import (
	"os"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
)

// docs/reader.md lists what each type takes, as the code has it.
func TestReaderPageListsTheForms(t *testing.T) {
	page, err := os.ReadFile("../../docs/reader.md")
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| column | Go values | text |\n|---|---|---|\n")
	for _, f := range keytype.Forms() {
		text := f.Text
		if strings.ContainsAny(text, "0123456789{(\\") {
			text = "`" + text + "`"
		}
		table.WriteString("| " + f.Types + " | " + f.Takes + " | " + text + " |\n")
	}
	if !strings.Contains(string(page), table.String()) {
		t.Errorf("docs/reader.md does not have the table\n%s", table.String())
	}
}
