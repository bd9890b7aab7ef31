package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// writes counts what the writers did.
type writes struct {
	committed atomic.Int64
	undone    atomic.Int64 // rolled back on purpose, or in conflict with another writer
}

// write is one kind of transaction. It returns errUndone when it ended in a
// rollback that was wanted.
type write struct {
	weight int
	run    func(ctx context.Context, conn *pgx.Conn) error
}

var errUndone = errors.New("rolled back on purpose")

// statement is a write of one statement, with arguments made anew for each.
func statement(sql string, args func() []any) func(context.Context, *pgx.Conn) error {
	return func(ctx context.Context, conn *pgx.Conn) error {
		var values []any
		if args != nil {
			values = args()
		}
		_, err := conn.Exec(ctx, sql, values...)
		return err
	}
}

func oneOf(n int) func() []any { return func() []any { return []any{1 + pick(n)} } }

// allWrites: what applications do, and what people and migrations do to them.
func allWrites() []write {
	return []write{
		// One row, as applications do all day.
		{30, statement(`UPDATE users SET name = 'User ' || id || ' v' || version + 1, version = version + 1 WHERE id = $1`, oneOf(users))},
		{30, statement(`UPDATE products SET price_cents = price_cents + 1, version = version + 1 WHERE id = $1`, oneOf(products))},
		{15, statement(`UPDATE stock SET quantity = quantity + 1, version = version + 1 WHERE product_id = $1 AND warehouse = $2`,
			func() []any { return []any{1 + pick(products), 1 + rand.IntN(warehouses)} })},
		{5, statement(`UPDATE products SET name = 'Product ' || id || ' v' || version + 1, version = version + 1 WHERE id = $1`, oneOf(products))},
		// A column that is in no cached value.
		{10, statement(`UPDATE products SET views = views + 1 WHERE id = $1`, oneOf(products))},
		// A column that is in a key: both addresses are stale.
		{10, statement(`UPDATE users SET email = $2, version = version + 1 WHERE id = $1`, func() []any {
			u := 1 + pick(users)
			return []any{u, email(u, rand.IntN(emailsEach))}
		})},
		// One row, many keys.
		{3, statement(`UPDATE sellers SET name = 'Seller ' || id || ' v' || version + 1, version = version + 1 WHERE id = $1`, oneOf(sellers))},
		{3, statement(`UPDATE products SET status = CASE status WHEN 'live' THEN 'draft' ELSE 'live' END WHERE id = $1`, oneOf(products))},
		// Many rows by hand.
		{1, statement(`UPDATE products SET price_cents = price_cents * 2 % 100000, version = version + 1 WHERE seller_id = $1`, oneOf(sellers))},
		{1, statement(`UPDATE users SET name = upper(name), version = version + 1 WHERE id % 50 = $1`, func() []any { return []any{rand.IntN(50)} })},
		// The primary key itself changes; so do the rows that refer to it, by cascade.
		{3, statement(`UPDATE products SET id = CASE WHEN id > $2 THEN id - $2 ELSE id + $2 END, version = version + 1 WHERE id IN ($1, $1::bigint + $2)`,
			func() []any { return []any{1 + pick(products), renumber} })},
		// A user moves to another tenant and back.
		{3, statement(`UPDATE users SET tenant_id = CASE tenant_id WHEN $2 THEN $3 ELSE $2 END, version = version + 1 WHERE id = $1`, func() []any {
			u := 1 + pick(users)
			return []any{u, homeTenant(u), otherTenant(u)}
		})},
		// Gone, and back as somebody else.
		{3, replaceUser},
		{3, replaceProduct},
		{3, moveCart},
		// Changes that never happened, wholly and in part.
		{3, rollback},
		{3, rollbackToSavepoint},
	}
}

// replaceUser deletes a user in one transaction and inserts it in another: the
// cached "no row" in between has to go too.
func replaceUser(ctx context.Context, conn *pgx.Conn) error {
	u := 1 + pick(users)
	if _, err := conn.Exec(ctx, `DELETE FROM users WHERE id = $1`, u); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, `INSERT INTO users (tenant_id, id, email, name, version)
		VALUES ($1, $2, $3, 'New user', (random() * 1e9)::bigint) ON CONFLICT DO NOTHING`, homeTenant(u), u, email(u, rand.IntN(emailsEach)))
	return err
}

func replaceProduct(ctx context.Context, conn *pgx.Conn) error {
	p := 1 + pick(products)
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM products WHERE id IN ($1, $1::bigint + $2)`, p, renumber); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO products (id, tenant_id, seller_id, name, price_cents, version)
			VALUES ($1::bigint, $2, $3, 'Product ' || $1, 1, (random() * 1e9)::bigint)`, p, 1+p%tenants, 1+p%sellers); err != nil {
			return err
		}
		// A version that no row had before: were the stock to begin with 1 again, the check would
		// take two rows with another one in between for one.
		_, err := tx.Exec(ctx, `INSERT INTO stock SELECT $1, w, 1, (random() * 1e9)::bigint FROM generate_series(1, $2) w`, p, warehouses)
		return err
	})
}

// moveCart changes a table that is not published, and says so in the same
// transaction.
func moveCart(ctx context.Context, conn *pgx.Conn) error {
	c := 1 + pick(carts)
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE carts SET total = total + 1, version = version + 1 WHERE id = $1`, c); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT pg_logical_emit_message(true, 'cart.changed', json_build_object('cart_id', $1::bigint)::text)`, c)
		return err
	})
}

func rollback(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE users SET name = 'never', version = version + 1 WHERE id = $1`, 1+pick(users)); err != nil {
			return err
		}
		return errUndone
	})
}

func rollbackToSavepoint(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE users SET version = version + 1 WHERE id = $1`, 1+pick(users)); err != nil {
			return err
		}
		err := pgx.BeginFunc(ctx, tx, func(sub pgx.Tx) error {
			if _, err := sub.Exec(ctx, `UPDATE products SET name = 'never', version = version + 1 WHERE id = $1`, 1+pick(products)); err != nil {
				return err
			}
			return errUndone
		})
		if !errors.Is(err, errUndone) {
			return err
		}
		return nil
	})
}

// reloadStock is a nightly import: TRUNCATE, then COPY.
func reloadStock(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `TRUNCATE stock`); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT id FROM products ORDER BY id`)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		version := rand.Int64N(1e9)
		_, err = tx.CopyFrom(ctx, pgx.Identifier{"stock"}, []string{"product_id", "warehouse", "quantity", "version"},
			pgx.CopyFromSlice(len(ids)*warehouses, func(i int) ([]any, error) {
				return []any{ids[i/warehouses], 1 + i%warehouses, rand.Int64N(100), version}, nil
			}))
		return err
	})
}

// writer runs transactions until ctx ends; it finishes the one that it has begun.
func (d *demo) writer(ctx context.Context, conn *pgx.Conn) error {
	all := allWrites()
	total := 0
	for _, w := range all {
		total += w.weight
	}
	for limit := pace(writeRate, writerCount); limit.Wait(ctx) == nil; {
		n := rand.IntN(total)
		i := 0
		for ; n >= all[i].weight; i++ {
			n -= all[i].weight
		}
		if err := d.write(ctx, conn, all[i].run); err != nil {
			return err
		}
	}
	return nil
}

// importer reloads the stock now and then: each time a whole family of keys goes, by
// a scan of the keys in Redis.
func (d *demo) importer(ctx context.Context, conn *pgx.Conn) error {
	timer := time.NewTimer(firstImport)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			if err := d.write(ctx, conn, reloadStock); err != nil {
				return err
			}
			timer.Reset(importInterval)
		}
	}
}

// write runs one transaction to its end, also when ctx ends meanwhile.
func (d *demo) write(ctx context.Context, conn *pgx.Conn, run func(context.Context, *pgx.Conn) error) error {
	err := run(context.WithoutCancel(ctx), conn)
	switch {
	case err == nil:
		d.writes.committed.Add(1)
	case errors.Is(err, errUndone), conflict(err):
		d.writes.undone.Add(1)
	default:
		return fmt.Errorf("write to the shop: %w", err)
	}
	return nil
}

// conflict: writers get into each other's way, as real ones do.
func conflict(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "23505", // unique_violation
		"23503", // foreign_key_violation
		"40P01", // deadlock_detected
		"40001": // serialization_failure
		return true
	}
	return false
}
