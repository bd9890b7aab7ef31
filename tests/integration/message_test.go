package integration

import "testing"

func TestMessages(t *testing.T) {
	w := newWorld(t, `CREATE TABLE t (id int PRIMARY KEY)`, `
classes:
  critical: {staleness: 1s}
keys:
  cart:   {key: "cart:{cart_id}", class: critical}
  basket: {key: "t:{tenant}:basket:{id}", tenant: tenant, class: critical}
  lists:  {key: "t:{tenant}:list:{version}:{q}", tenant: tenant, class: critical, version: "t:{tenant}:lists"}
mappings:
  - message: cart.changed
    keys: [{cart: {cart_id: cart_id}}]
  - message: basket.changed
    keys: [{basket: {tenant: tenant, id: id}}, {lists: {tenant: tenant}}]
`)
	p := w.start()
	emit := func(transactional bool, prefix, content string) string {
		flag := "false"
		if transactional {
			flag = "true"
		}
		return `SELECT pg_logical_emit_message(` + flag + `, '` + prefix + `', '` + content + `')`
	}
	after := emit(true, "test.after", "") // so that what was sent at once is surely behind us
	w.step(p, "transactional", keys("cart:7"), keys("cart:8", "cart:"), emit(true, "cart.changed", `{"cart_id": 7}`))
	w.step(p, "not transactional", keys("cart:7"), keys("cart:8"), emit(false, "cart.changed", `{"cart_id": "7"}`), after)
	w.step(p, "another prefix", nil, keys("cart:7"), emit(true, "cart.changed.not", `{"cart_id": 7}`), emit(true, "cart", `{"cart_id": 7}`))
	w.step(p, "an id keeps its digits", keys("cart:12345678901234567890"), keys("cart:7"), emit(true, "cart.changed", `{"cart_id": 12345678901234567890}`))
	w.step(p, "NULL, bool, text that needs encoding", keys("cart:%-", "cart:t", "cart:a%3Ab%2A"), keys("cart:null", "cart:true", "cart:a:b*", "cart:"),
		emit(true, "cart.changed", `{"cart_id": null}`)+"; "+emit(true, "cart.changed", `{"cart_id": true}`)+"; "+emit(true, "cart.changed", `{"cart_id": "a:b*"}`))
	w.step(p, "rolled back, transactional", nil, keys("cart:7"), `BEGIN; `+emit(true, "cart.changed", `{"cart_id": 7}`)+`; ROLLBACK`, after)
	w.step(p, "rolled back, not transactional", keys("cart:7"), keys("cart:8"), `BEGIN; `+emit(false, "cart.changed", `{"cart_id": 7}`)+`; ROLLBACK`, after)
	w.step(p, "rolled back savepoint", keys("cart:8"), keys("cart:7"),
		`BEGIN; SAVEPOINT s; `+emit(true, "cart.changed", `{"cart_id": 7}`)+`; ROLLBACK TO s; `+emit(true, "cart.changed", `{"cart_id": 8}`)+`; COMMIT`)
	w.step(p, "bad JSON widens to the family", keys("cart:7", "cart:8"), keys("t:a:basket:1"), emit(true, "cart.changed", `{"cart_id": `))
	w.step(p, "no object", keys("cart:7", "cart:8"), keys("t:a:basket:1"), emit(true, "cart.changed", `7`))
	w.step(p, "a missing field, not transactional", keys("cart:7", "cart:8"), keys("t:a:basket:1"), emit(false, "cart.changed", `{}`), after)
	w.step(p, "one tenant's key and version", keys("t:a:basket:1"), keys("t:a:basket:2", "t:b:basket:1", "t:a:lists"), emit(true, "basket.changed", `{"tenant": "a", "id": 1}`))
	version := w.get("t:a:lists")
	if version == "" || version == "cached" || w.get("t:b:lists") != "" {
		t.Errorf("versions are %q and %q, want the first moved and the second absent", version, w.get("t:b:lists"))
	}
	w.put("t:a:basket:1", "t:b:basket:1")
	w.exec(emit(true, "basket.changed", `{"tenant": "a"}`))
	w.settle(p)
	w.want("t:b:basket:1", "t:a:lists")
	if now := w.get("t:a:lists"); now <= version {
		t.Errorf("the version is %q, was %q", now, version)
	}
	p.stop()
}
