CREATE TABLE sellers (
    id      bigint PRIMARY KEY,
    name    text NOT NULL,
    version bigint NOT NULL DEFAULT 1
);

CREATE TABLE products (
    id          bigint PRIMARY KEY,
    tenant_id   int NOT NULL,
    seller_id   bigint NOT NULL REFERENCES sellers ON UPDATE CASCADE ON DELETE CASCADE,
    name        text NOT NULL,
    price_cents bigint NOT NULL,
    status      text NOT NULL DEFAULT 'live',
    views       bigint NOT NULL DEFAULT 0, -- not cached: its changes make nothing stale
    version     bigint NOT NULL DEFAULT 1
);
CREATE INDEX ON products (seller_id);
CREATE INDEX ON products (tenant_id);

CREATE TABLE users (
    tenant_id int NOT NULL,
    id        bigint NOT NULL,
    email     text NOT NULL,
    name      text NOT NULL,
    version   bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, email)
);

CREATE TABLE stock (
    product_id bigint NOT NULL REFERENCES products ON UPDATE CASCADE ON DELETE CASCADE,
    warehouse  int NOT NULL,
    quantity   bigint NOT NULL,
    version    bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (product_id, warehouse)
);

CREATE TABLE carts ( -- not published: the writer says so with a logical message
    id      bigint PRIMARY KEY,
    total   bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 1
);

-- The mappings use columns outside of the primary key: their old values must be in
-- the log for the old keys to be deleted one by one.
ALTER TABLE users REPLICA IDENTITY FULL;
ALTER TABLE products REPLICA IDENTITY FULL;
