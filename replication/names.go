package replication

import (
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/charset"
)

// Names reads names, and JSON with names in it, from the catalogs. A name that has no form in
// UTF-8 must not stop what only meets it: the server refuses to send it as text. So queries
// ask for convert_to(name, getdatabaseencoding()), the bytes as they are, and what has no form
// is replaced here. No mapping can name such a table or column, so nothing is taken for it.
type Names struct {
	encoding string
	text     *charset.Encoding // nil until it is needed
}

// NamesOf is for what comes over conn.
func NamesOf(conn *pgx.Conn) *Names {
	return &Names{encoding: conn.PgConn().ParameterStatus(serverEncoding)}
}

// One is a name in UTF-8.
func (n *Names) One(b []byte) (string, error) {
	// Nothing says what SQL_ASCII means: what could be UTF-8 is what clients are sent.
	if n.encoding == "UTF8" || undeclared(n.encoding) != "" && utf8.Valid(b) {
		return string(b), nil
	}
	if n.text == nil {
		var err error
		if n.text, err = charset.Server(n.encoding); err != nil {
			return "", err
		}
	}
	return legible(string(b), n.text), nil
}

// All are names in UTF-8.
func (n *Names) All(list [][]byte) ([]string, error) {
	all := make([]string, len(list))
	for i, b := range list {
		var err error
		if all[i], err = n.One(b); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Scan reads the columns of a row into dest, where *string and *[]string are names.
func (n *Names) Scan(rows pgx.Rows, dest ...any) error {
	raw := make([]any, len(dest))
	for i, d := range dest {
		switch d.(type) {
		case *string:
			raw[i] = new([]byte)
		case *[]string:
			raw[i] = new([][]byte)
		default:
			raw[i] = d
		}
	}
	if err := rows.Scan(raw...); err != nil {
		return err
	}
	for i, d := range dest {
		var err error
		switch d := d.(type) {
		case *string:
			*d, err = n.One(*raw[i].(*[]byte))
		case *[]string:
			*d, err = n.All(*raw[i].(*[][]byte))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
