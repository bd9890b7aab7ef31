package demo

import (
	"context"
	_ "embed"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/jackc/pgx/v5"
)

//go:embed shop.sql
var schemaSQL string

// The shop is small enough for every entry to be compared at the end, and for
// readers and writers to meet on the same rows all the time. Ids, addresses and
// tenants that rows move between are bounded too, so that the list of all entries is
// known.
const (
	tenants    = 3
	users      = 600
	emailsEach = 3 // addresses that a user changes between
	sellers    = 40
	products   = 600
	warehouses = 3
	carts      = 200
	queries    = 12 // searches in each tenant

	// A product is renumbered to this many above its id and back.
	renumber = 10000
)

func createShop(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, schemaSQL); err != nil {
		return fmt.Errorf("create the shop's tables: %w", err)
	}
	for _, sql := range []string{
		`INSERT INTO sellers SELECT i, 'Seller ' || i FROM generate_series(1, ` + strconv.Itoa(sellers) + `) i`,
		`INSERT INTO products SELECT i, 1 + i % ` + strconv.Itoa(tenants) + `, 1 + i % ` + strconv.Itoa(sellers) +
			`, 'Product ' || i, 100 * i FROM generate_series(1, ` + strconv.Itoa(products) + `) i`,
		`INSERT INTO users SELECT 1 + i % ` + strconv.Itoa(tenants) + `, i, 'user' || i || '.0@shop.example', 'User ' || i FROM generate_series(1, ` +
			strconv.Itoa(users) + `) i`,
		`INSERT INTO stock SELECT p, w, 10 FROM generate_series(1, ` + strconv.Itoa(products) + `) p, generate_series(1, ` + strconv.Itoa(warehouses) + `) w`,
		`INSERT INTO carts SELECT i FROM generate_series(1, ` + strconv.Itoa(carts) + `) i`,
		`ANALYZE`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill the shop: %w", err)
		}
	}
	return nil
}

func homeTenant(user int) int { return 1 + user%tenants }

// otherTenant is where a user moves to, and comes back from.
func otherTenant(user int) int { return 1 + (user+1)%tenants }

func email(user, n int) string { return fmt.Sprintf("user%d.%d@shop.example", user, n) }

func query(n int) string { return "Product " + strconv.Itoa(n+1) }

// pick chooses one of n, mostly from the first tenth: readers and writers meet where
// the shop is busy.
func pick(n int) int {
	if rand.IntN(10) < 7 {
		n = max(1, n/10)
	}
	return rand.IntN(n)
}
