package cache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// Product is what a page shows.
type Product struct {
	Name   string
	Price  int64
	Seller string
}

// The examples' servers, views and writer.
var (
	ctx      = context.Background()
	rdb      *redis.Client
	pool     *pgxpool.Pool
	replica  *pgxpool.Pool
	products *cache.View[Product]
)

// One client and one view of each family are made at the start of a program.
func Example() {
	client, err := cache.Open(ctx, rdb, pool, cache.WithMappings("mappings.yaml"))
	if err != nil {
		fmt.Println(err) // with what has to be mended
		return
	}
	defer client.Close()
	products, err := cache.Family[Product](client, "product_page")
	if err != nil {
		fmt.Println(err)
		return
	}

	// A read says which value, and how to load it if need be. The loader returns
	// ErrNotFound when there is no such row: that is remembered too.
	id := int64(7)
	p, err := products.Get(ctx, cache.Vars{"product_id": id}, func(ctx context.Context, tx pgx.Tx) (p Product, err error) {
		err = tx.QueryRow(ctx, `SELECT name, price_cents FROM products WHERE id = $1`, id).Scan(&p.Name, &p.Price)
		if errors.Is(err, pgx.ErrNoRows) {
			return p, cache.ErrNotFound
		}
		return p, err
	})
	fmt.Println(p, err)
}

func ExampleOpen() {
	registry := prometheus.NewRegistry()
	client, err := cache.Open(ctx, rdb, pool,
		cache.WithMappings("mappings.yaml"),
		cache.WithLogger(slog.Default()),
		cache.WithRegisterer(registry),
		cache.WithReplica(replica),                   // loads go to the standby while that is right
		cache.WithL1(10_000),                         // hits in memory, kept right by the daemon's stream
		cache.WithSourceConcurrency(20),              // loads at a time, of this process
		cache.WithRedisTimeout(200*time.Millisecond), // then a read goes to the source
	)
	fmt.Println(client, err)
}

// A request that writes hands a token to the ones that follow, here in a cookie, so that the
// same visitor sees the write at once. Others see it when the daemon has applied it.
func ExampleAtLeast() {
	http.HandleFunc("PUT /products/{id}", func(w http.ResponseWriter, r *http.Request) {
		if _, err := pool.Exec(r.Context(), `UPDATE products SET price_cents = 99 WHERE id = $1`, r.PathValue("id")); err != nil {
			http.Error(w, "not saved", http.StatusInternalServerError)
			return
		}
		token, err := cache.TokenAfterCommit(r.Context(), pool)
		if err != nil {
			http.Error(w, "saved, and not yet to be seen everywhere", http.StatusAccepted)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "seen", Value: token.String(), MaxAge: 600, HttpOnly: true})
	})
	http.HandleFunc("GET /products/{id}", func(w http.ResponseWriter, r *http.Request) {
		var token cache.Token // asks for nothing
		if cookie, err := r.Cookie("seen"); err == nil {
			token, _ = cache.ParseToken(cookie.Value) // a visitor may send anything
		}
		id, err := strconv.ParseInt(r.PathValue("id"), 10, 64) // "007" is row 7, and no key of its own
		if err != nil {
			http.NotFound(w, r)
			return
		}
		p, err := products.Get(r.Context(), cache.Vars{"product_id": id}, loadProduct(id), cache.AtLeast(token))
		if errors.Is(err, cache.ErrTokenAhead) { // of a moment that the source does not know: after a failover, or made up
			http.SetCookie(w, &http.Cookie{Name: "seen", MaxAge: -1})
			p, err = products.Get(r.Context(), cache.Vars{"product_id": id}, loadProduct(id))
		}
		fmt.Fprintln(w, p, err)
	})
}

// The page shows the seller's name, so it depends on a second row, which only the loader
// knows. The mappings say `dependents: ["seller:{id}"]` at the sellers' table.
func ExampleDependsOn() {
	load := func(ctx context.Context, tx pgx.Tx) (p Product, err error) {
		var seller int64
		err = tx.QueryRow(ctx, `SELECT p.name, p.price_cents, s.name, s.id FROM products p JOIN sellers s ON s.id = p.seller_id WHERE p.id = 7`).
			Scan(&p.Name, &p.Price, &p.Seller, &seller)
		if err != nil {
			return p, err
		}
		return p, cache.DependsOn(ctx, "seller", seller)
	}
	fmt.Println(products.Get(ctx, cache.Vars{"product_id": 7}, load))
}

// Values for a list come in one round trip, and what is missing in one transaction.
func ExampleView_GetMany() {
	ids := []int64{7, 8, 9}
	vars := make([]cache.Vars, len(ids))
	for i, id := range ids {
		vars[i] = cache.Vars{"product_id": id}
	}
	items, err := products.GetMany(ctx, vars, func(ctx context.Context, tx pgx.Tx, missing []cache.Vars) ([]cache.Item[Product], error) {
		at := make(map[int64]int, len(missing))
		wanted := make([]int64, len(missing))
		for i, vars := range missing {
			wanted[i] = vars["product_id"].(int64)
			at[wanted[i]] = i
		}
		rows, err := tx.Query(ctx, `SELECT id, name, price_cents FROM products WHERE id = ANY($1)`, wanted)
		if err != nil {
			return nil, err
		}
		found := make([]cache.Item[Product], len(missing)) // what no row fills in is not found
		var id int64
		var p Product
		_, err = pgx.ForEachRow(rows, []any{&id, &p.Name, &p.Price}, func() error {
			found[at[id]] = cache.Item[Product]{Value: p, Found: true}
			return nil
		})
		return found, err
	})
	for i := range items {
		fmt.Println(ids[i], items[i].Found, items[i].Value)
	}
	fmt.Println(err)
}

// A job fills the cache before anybody asks, or after a change that no mapping tells of.
func ExampleView_Refresh() {
	p, err := products.Refresh(ctx, cache.Vars{"product_id": 7}, loadProduct(7))
	fmt.Println(p, err)
}

// Text and bytes can be stored as they are, as whole pages of HTML.
func ExampleWithCodec() {
	client, err := cache.Open(ctx, rdb, pool, cache.WithMappings("mappings.yaml"), cache.WithCodec(cache.Raw))
	if err != nil {
		fmt.Println(err)
		return
	}
	pages, err := cache.Family[string](client, "product_page")
	fmt.Println(pages, err)
}

// What went wrong decides the answer.
func ExampleErrUnavailable() {
	_, err := products.Get(ctx, cache.Vars{"product_id": 7}, loadProduct(7))
	switch {
	case errors.Is(err, cache.ErrNotFound):
		fmt.Println(http.StatusNotFound)
	case errors.Is(err, cache.ErrUnavailable): // neither the source nor the cache could answer
		fmt.Println(http.StatusServiceUnavailable)
	case err != nil: // the loader's own error
		fmt.Println(http.StatusInternalServerError)
	}
}

func loadProduct(id int64) func(context.Context, pgx.Tx) (Product, error) {
	return func(ctx context.Context, tx pgx.Tx) (p Product, err error) {
		err = tx.QueryRow(ctx, `SELECT name, price_cents FROM products WHERE id = $1`, id).Scan(&p.Name, &p.Price)
		if errors.Is(err, pgx.ErrNoRows) {
			err = cache.ErrNotFound
		}
		return p, err
	}
}
