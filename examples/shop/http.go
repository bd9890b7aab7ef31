package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

func (s *shop) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products/{id}", s.getProduct)
	mux.HandleFunc("PUT /products/{id}", s.put(`UPDATE products SET price_cents = $2 WHERE id = $1`, "price_cents"))
	mux.HandleFunc("PUT /stock/{id}", s.put(`UPDATE stock SET quantity = $2 WHERE product_id = $1`, "quantity"))
	mux.HandleFunc("PUT /sellers/{id}", s.put(`UPDATE sellers SET name = $2 WHERE id = $1`, "name"))
	mux.HandleFunc("GET /search", s.getSearch)
	return mux
}

func (s *shop) getProduct(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		http.Error(w, "the id of a product is a number", http.StatusBadRequest)
		return
	}
	own := ownWrites(r)
	product, err := s.product(r.Context(), id, own...)
	if err != nil {
		fail(w, r, err)
		return
	}
	quantity, err := s.quantity(r.Context(), id, own...)
	if err != nil && !errors.Is(err, cache.ErrNotFound) {
		fail(w, r, err)
		return
	}
	answer(w, r, struct {
		Product
		InStock int64 `json:"in_stock"`
	}{product, quantity})
}

func (s *shop) getSearch(w http.ResponseWriter, r *http.Request) {
	hits, err := s.search(r.Context(), r.FormValue("q"), ownWrites(r)...)
	if err != nil {
		fail(w, r, err)
		return
	}
	answer(w, r, hits)
}

// put answers requests that set one value of one row, as in `curl -X PUT -d
// price_cents=99 .../products/7`.
func (s *shop) put(sql, field string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
		value := r.FormValue(field)
		if err != nil || value == "" {
			http.Error(w, "want a numeric id and -d "+field+"=...", http.StatusBadRequest)
			return
		}
		token, err := s.write(r.Context(), sql, id, value)
		if err != nil {
			fail(w, r, err)
			return
		}
		// Whoever has written sees it at once; everybody else within the class's budget.
		// Then nobody needs the token any more.
		http.SetCookie(w, &http.Cookie{Name: tokenCookie, Value: token.String(), Path: "/", HttpOnly: true,
			SameSite: http.SameSiteLaxMode, Expires: time.Now().Add(time.Minute)})
		w.WriteHeader(http.StatusNoContent)
	}
}

const tokenCookie = "shop_token"

// ownWrites makes reads see what the same visitor has written.
func ownWrites(r *http.Request) []cache.GetOption {
	cookie, err := r.Cookie(tokenCookie)
	if err != nil {
		return nil
	}
	token, err := cache.ParseToken(cookie.Value)
	if err != nil {
		return nil // not one of ours
	}
	return []cache.GetOption{cache.AtLeast(token)}
}

func answer(w http.ResponseWriter, r *http.Request, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		slog.DebugContext(r.Context(), "the visitor has gone", "error", err)
	}
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, cache.ErrTokenAhead) {
		// The write is not there: the database went back to before it, or the visitor made the
		// token up. Without it the page can be had.
		http.SetCookie(w, &http.Cookie{Name: tokenCookie, Path: "/", MaxAge: -1})
		http.Redirect(w, r, r.URL.RequestURI(), http.StatusTemporaryRedirect)
		return
	}
	if errors.Is(err, cache.ErrNotFound) || errors.Is(err, errNoRow) {
		http.NotFound(w, r)
		return
	}
	slog.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
	http.Error(w, "the shop cannot answer now", http.StatusServiceUnavailable)
}
