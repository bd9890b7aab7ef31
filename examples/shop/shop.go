package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// Product is a product page.
type Product struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	PriceCents int64  `json:"price_cents"`
	Seller     string `json:"seller"`
}

// Hit is one result of a search.
type Hit struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
}

// shop reads through the cache and writes to Postgres.
type shop struct {
	pool     *pgxpool.Pool
	products *cache.View[Product]
	stock    *cache.View[int64]
	searches *cache.View[[]Hit]
}

func newShop(pool *pgxpool.Pool, c *cache.Client) (*shop, error) {
	products, err1 := cache.Family[Product](c, "product")
	stock, err2 := cache.Family[int64](c, "stock")
	searches, err3 := cache.Family[[]Hit](c, "search")
	return &shop{pool, products, stock, searches}, errors.Join(err1, err2, err3)
}

// product is the page of a product. The loader runs only on a miss, and once for all
// who miss at the same time, here and in other processes.
func (s *shop) product(ctx context.Context, id int64, options ...cache.GetOption) (Product, error) {
	return s.products.Get(ctx, cache.Vars{"product_id": id}, func(ctx context.Context, tx pgx.Tx) (Product, error) {
		p := Product{ID: id}
		var seller int64
		err := tx.QueryRow(ctx, `
			SELECT p.name, p.price_cents, s.id, s.name
			FROM products p JOIN sellers s ON s.id = p.seller_id
			WHERE p.id = $1`, id).Scan(&p.Name, &p.PriceCents, &seller, &p.Seller)
		if errors.Is(err, pgx.ErrNoRows) {
			return p, cache.ErrNotFound // remembered as well, until the product is there
		}
		if err != nil {
			return p, err
		}
		return p, cache.DependsOn(ctx, "seller", seller)
	}, options...)
}

func (s *shop) quantity(ctx context.Context, id int64, options ...cache.GetOption) (int64, error) {
	return s.stock.Get(ctx, cache.Vars{"product_id": id}, func(ctx context.Context, tx pgx.Tx) (int64, error) {
		var n int64
		err := tx.QueryRow(ctx, `SELECT quantity FROM stock WHERE product_id = $1`, id).Scan(&n)
		if errors.Is(err, pgx.ErrNoRows) {
			err = cache.ErrNotFound
		}
		return n, err
	}, options...)
}

func (s *shop) search(ctx context.Context, query string, options ...cache.GetOption) ([]Hit, error) {
	return s.searches.Get(ctx, cache.Vars{"query": query}, func(ctx context.Context, tx pgx.Tx) ([]Hit, error) {
		rows, err := tx.Query(ctx, `SELECT id, name FROM products WHERE starts_with(name, $1) ORDER BY id LIMIT 20`, query)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowToStructByPos[Hit])
	}, options...)
}

// errNoRow is returned by writes to something that is not there.
var errNoRow = errors.New("there is no such row")

// write changes a row, and returns a token: a read that is given it sees the write.
func (s *shop) write(ctx context.Context, sql string, args ...any) (cache.Token, error) {
	tag, err := s.pool.Exec(ctx, sql, args...)
	if err != nil {
		return cache.Token{}, err
	}
	if tag.RowsAffected() == 0 {
		return cache.Token{}, errNoRow
	}
	return cache.TokenAfterCommit(ctx, s.pool)
}
