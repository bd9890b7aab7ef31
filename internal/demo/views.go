package demo

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// views are what the shop's readers cache, one for each family of the mappings.
func views() []*view {
	return []*view{
		{
			family: "user", vars: []string{"tenant_id", "id"},
			sql: `SELECT format('%s <%s> v%s', name, email, version) FROM users WHERE tenant_id = $1 AND id = $2`,
			each: func(yield func(...any)) {
				for u := 1; u <= users; u++ {
					yield(homeTenant(u), u)
					yield(otherTenant(u), u)
				}
			},
		},
		{
			family: "user_by_email", vars: []string{"tenant_id", "email"},
			sql: `SELECT format('%s: %s v%s', id, name, version) FROM users WHERE tenant_id = $1 AND email = $2`,
			each: func(yield func(...any)) {
				for u := 1; u <= users; u++ {
					for n := range emailsEach {
						yield(homeTenant(u), email(u, n))
						yield(otherTenant(u), email(u, n))
					}
				}
			},
		},
		{
			family: "product_page", vars: []string{"product_id"},
			sql: `SELECT format('%s %s v%s by %s v%s', p.name, p.price_cents, p.version, s.name, s.version)
				FROM products p JOIN sellers s ON s.id = p.seller_id WHERE p.id = $1`,
			dependsOn: func(ctx context.Context, tx pgx.Tx, args []any) error {
				var seller int64
				err := tx.QueryRow(ctx, `SELECT seller_id FROM products WHERE id = $1`, args...).Scan(&seller)
				if errors.Is(err, pgx.ErrNoRows) {
					return nil
				}
				if err != nil {
					return err
				}
				return cache.DependsOn(ctx, "seller", seller)
			},
			each: func(yield func(...any)) {
				for p := 1; p <= products; p++ {
					yield(p)
					yield(p + renumber)
				}
			},
		},
		{
			family: "stock", vars: []string{"product_id"},
			sql: `SELECT string_agg(format('%s: %s v%s', warehouse, quantity, version), ', ' ORDER BY warehouse) FROM stock WHERE product_id = $1`,
			each: func(yield func(...any)) {
				for p := 1; p <= products; p++ {
					yield(p)
					yield(p + renumber)
				}
			},
		},
		{
			family: "search", vars: []string{"tenant_id", "query"},
			sql: `SELECT format('%s found, %s', count(*), md5(string_agg(format('%s %s %s v%s', id, name, price_cents, version), ',' ORDER BY id)))
				FROM products WHERE tenant_id = $1 AND starts_with(name, $2)`,
			each: func(yield func(...any)) {
				for t := 1; t <= tenants; t++ {
					for q := range queries {
						yield(t, query(q))
					}
				}
			},
		},
		{
			family: "cart", vars: []string{"cart_id"},
			sql: `SELECT format('%s v%s', total, version) FROM carts WHERE id = $1`,
			each: func(yield func(...any)) {
				for c := 1; c <= carts; c++ {
					yield(c)
				}
			},
		},
	}
}
