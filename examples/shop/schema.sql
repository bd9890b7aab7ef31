CREATE TABLE IF NOT EXISTS sellers (
    id   bigint PRIMARY KEY,
    name text NOT NULL
);

CREATE TABLE IF NOT EXISTS products (
    id          bigint PRIMARY KEY,
    seller_id   bigint NOT NULL REFERENCES sellers,
    name        text NOT NULL,
    price_cents bigint NOT NULL
);

-- So that the log tells which columns an update has changed.
ALTER TABLE products REPLICA IDENTITY FULL;

CREATE TABLE IF NOT EXISTS stock (
    product_id bigint PRIMARY KEY REFERENCES products,
    quantity   bigint NOT NULL
);

INSERT INTO sellers SELECT n, 'Seller ' || n FROM generate_series(1, 20) n ON CONFLICT DO NOTHING;
INSERT INTO products SELECT n, 1 + n % 20, 'Product ' || n, 100 * n FROM generate_series(1, 1000) n ON CONFLICT DO NOTHING;
INSERT INTO stock SELECT n, n % 7 FROM generate_series(1, 1000) n ON CONFLICT DO NOTHING;
