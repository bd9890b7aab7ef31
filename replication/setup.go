package replication

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// SetupOptions says what a source must offer before it can be streamed.
type SetupOptions struct {
	Slot, Publication             string
	CreateSlot, CreatePublication bool
	Tables                        []mapping.TableUse
	// BeforeSlot, when set, is called when there is no slot and one is about to be
	// made, which may take long. Its error ends Setup.
	BeforeSlot func(context.Context) error
	Logger     *slog.Logger
}

// SetupResult is the source as Setup left it.
type SetupResult struct {
	Server             Server
	Epoch              Epoch
	Publication        Publication
	PublicationCreated bool
	Slot               Slot
	SlotCreated        bool
	SlotUnused         bool      // it was there, and nothing has been read from it
	Findings           []Finding // none of them fatal
}

// Setup brings a source to where its slot can be streamed, in the one order that
// loses nothing: server, publication, slot. It may be called again and again.
//
// The error is a ConfigError when somebody has to act, with what to run; an
// UnavailableError when trying again is enough; and ErrSlotLost when the slot
// must be replaced (RecreateSlot), with everything else in the result in order.
func Setup(ctx context.Context, conn *pgx.Conn, o SetupOptions) (SetupResult, error) {
	var r SetupResult
	var err error
	if r.Server, err = ReadServer(ctx, conn); err != nil {
		return r, err
	}
	if err = r.Server.Check(); err != nil {
		return r, err
	}
	if r.Epoch, err = ReadEpoch(ctx, conn); err != nil {
		return r, err
	}
	slot, slotFound, err := ReadSlot(ctx, conn, o.Slot)
	if err != nil {
		return r, err
	}
	if slotFound {
		if err := slot.check(r.Server.Database); err != nil && !slot.Lost() {
			return r, err // another program's slot; do not touch the publication either
		}
	}
	_, publicationFound, err := ReadPublication(ctx, conn, o.Publication)
	if err != nil {
		return r, err
	}
	if slotFound && !publicationFound && !slot.Lost() {
		return r, publicationAfterSlot(o, slot)
	}
	if err = EnsurePublication(ctx, conn, o.Publication, o.CreatePublication, o.Tables); err != nil {
		return r, err
	}
	r.PublicationCreated = !publicationFound
	if r.Publication, _, err = ReadPublication(ctx, conn, o.Publication); err != nil {
		return r, err
	}
	if r.Findings, err = checkTables(ctx, conn, o.Publication, o.Tables, o.Tables); err != nil {
		return r, err
	}
	if err = FatalError(r.Findings); err != nil {
		return r, err
	}
	if r.PublicationCreated && o.Logger != nil {
		o.Logger.Info("created the publication", "publication", o.Publication, "tables", len(o.Tables))
	}
	if !slotFound && o.CreateSlot && o.BeforeSlot != nil {
		if err := o.BeforeSlot(ctx); err != nil {
			return r, err
		}
	}
	if !slotFound && o.CreateSlot && o.Logger != nil {
		if names := openTransactions(ctx, conn); names != "" {
			o.Logger.Info("creating the slot waits for open transactions", "slot", o.Slot, "oldest", names)
		}
	}
	if slotFound {
		if r.SlotUnused, err = slotUnused(ctx, conn, o.Slot); err != nil {
			return r, err
		}
	}
	r.Slot, r.SlotCreated, err = EnsureSlot(ctx, conn, o.Slot, o.CreateSlot)
	if r.SlotCreated && o.Logger != nil {
		o.Logger.Info("created the slot", "slot", o.Slot, "confirmed", r.Slot.ConfirmedLSN)
	}
	return r, err
}

// checkTables is everything that can be said about some of the mapped tables.
func checkTables(ctx context.Context, conn *pgx.Conn, publication string, tables, mapped []mapping.TableUse) ([]Finding, error) {
	findings, err := checkCatalog(ctx, conn, publication, tables, mapped)
	if err != nil {
		return nil, err
	}
	more, err := CheckPublication(ctx, conn, publication, tables)
	return append(findings, more...), err
}

// publicationAfterSlot refuses to make a publication for a slot that is older.
// The walsender reads each change with the catalog as it was at that change. For
// those before the publication it would fail on 15 to 17, for good and on every
// attempt, and on 18 go past them with no more than a warning.
func publicationAfterSlot(o SetupOptions, slot Slot) error {
	fix := dropSlotSQL(o.Slot) + "\n"
	if !o.CreatePublication {
		fix += createPublicationSQL(o.Publication, o.Tables) + "\n"
	}
	if !o.CreateSlot {
		fix += createSlotSQL(o.Slot) + "\n"
	}
	fix += "and start again: everything cached counts as changed then"
	return &ConfigError{Op: "look up publication " + o.Publication,
		Problem: "slot " + o.Slot + " exists (confirmed " + slot.ConfirmedLSN.String() + ") and the publication does not; one made now would not hold for the changes that the slot still has to send",
		Err:     ErrPublicationMissing, Fix: fix}
}
