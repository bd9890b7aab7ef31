package replication

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/charset"
)

// ErrSlotInUse means that another process streams the slot. A second daemon
// waits on it and takes over.
var ErrSlotInUse = errors.New("the slot is in use by another process")

// ErrChangesSkipped means that the server went past changes without sending
// them, which no replay brings back: a gap.
var ErrChangesSkipped = errors.New("the server skipped changes")

// readable makes the texts of a server's error UTF-8: they come in its own encoding, like
// all that this connection carries.
func readable(err error, text *charset.Encoding) error {
	var pg *pgconn.PgError
	if text != nil && errors.As(err, &pg) {
		for _, s := range []*string{&pg.Message, &pg.Detail, &pg.Hint, &pg.Where} {
			*s = legible(*s, text)
		}
	}
	return err
}

func legible(s string, text *charset.Encoding) string {
	if text == nil {
		return s
	}
	return string(text.Lossy([]byte(s)))
}

// classify adds what a SQLSTATE means for a stream. 55000 is not decided here:
// a lost slot and a slot of another database share it, and only the catalog
// tells them apart.
func classify(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "55006" {
		return fmt.Errorf("%w: %w", ErrSlotInUse, err)
	}
	return err
}

// PublicationFault is err, told as what it is where the server could not find the publication
// for a change: one that was made, or dropped and made again, after that change. The server
// reads each change with the catalog of its time, so no attempt gets past it.
func PublicationFault(err error, slot, publication string) error {
	var pg *pgconn.PgError
	var config *ConfigError
	if !errors.As(err, &pg) || pg.Code != "42704" || errors.As(err, &config) {
		return err
	}
	return &ConfigError{Op: "read the log", Problem: "the slot has changes to send from a time at which there was no publication " + publication + ", and no attempt gets past them", Err: err,
		Fix: dropSlotSQL(slot) + "\nand let it be created again: everything cached counts as changed then"}
}
