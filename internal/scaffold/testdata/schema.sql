-- A schema that was not made for this: what applications have after some years.
CREATE SCHEMA billing;
CREATE SCHEMA "Legacy App";
CREATE SCHEMA private;

CREATE TABLE tenants (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE users (id bigserial PRIMARY KEY, tenant_id int NOT NULL REFERENCES tenants, email text NOT NULL UNIQUE, manager_id bigint REFERENCES users);
CREATE TABLE profiles (user_id bigint PRIMARY KEY REFERENCES users, bio text);
CREATE TABLE sessions (token uuid PRIMARY KEY, user_id bigint NOT NULL REFERENCES users, expires timestamptz);
CREATE INDEX ON sessions (user_id);
CREATE TABLE roles (tenant_id int NOT NULL, name text NOT NULL, PRIMARY KEY (tenant_id, name));
CREATE TABLE user_roles (user_id bigint REFERENCES users, tenant_id int, role text, PRIMARY KEY (user_id, tenant_id, role),
    FOREIGN KEY (tenant_id, role) REFERENCES roles (tenant_id, name));
CREATE TABLE tenant_settings (tenant_id int PRIMARY KEY REFERENCES tenants, settings jsonb);
CREATE TABLE projects (tenant_id int NOT NULL, id int NOT NULL, title text, PRIMARY KEY (tenant_id, id));
CREATE TABLE documents (tenant_id int NOT NULL, project_id int NOT NULL, id int NOT NULL, body text, PRIMARY KEY (tenant_id, project_id, id),
    FOREIGN KEY (tenant_id, project_id) REFERENCES projects (tenant_id, id));

-- Self references, and a cycle.
CREATE TABLE categories (id serial PRIMARY KEY, parent_id int REFERENCES categories, name text);
CREATE TABLE departments (id int PRIMARY KEY, head_id int);
CREATE TABLE employees (id int PRIMARY KEY, department_id int REFERENCES departments, tenant_id int);
ALTER TABLE departments ADD FOREIGN KEY (head_id) REFERENCES employees;

-- uuid keys, composite keys, a foreign key to something else than the primary key, two foreign keys to one table.
CREATE TABLE products (id uuid PRIMARY KEY, sku text NOT NULL UNIQUE, category_id int REFERENCES categories, price numeric);
CREATE INDEX ON products (category_id);
CREATE TABLE stock (sku text REFERENCES products (sku), warehouse int, quantity int, PRIMARY KEY (sku, warehouse));
CREATE TABLE orders (id bigint PRIMARY KEY, buyer_id bigint REFERENCES users, seller_id bigint REFERENCES users, placed timestamptz);
CREATE TABLE order_items (order_id bigint REFERENCES orders, line int, product_id uuid REFERENCES products, PRIMARY KEY (order_id, line));
CREATE TABLE order_totals (order_id bigint PRIMARY KEY REFERENCES orders, net numeric, gross numeric GENERATED ALWAYS AS (net * 1.2) STORED);

-- Without a primary key.
CREATE TABLE audit_log (at timestamptz, what text);
CREATE TABLE page_views (url text, day date);
ALTER TABLE page_views REPLICA IDENTITY FULL;
CREATE TABLE country_codes (code char(2) NOT NULL, name text);
CREATE UNIQUE INDEX country_codes_code ON country_codes (code);
CREATE TABLE drafts (id int NOT NULL, live bool);
CREATE UNIQUE INDEX ON drafts (id) WHERE live;
CREATE TABLE currencies (code char(3) NOT NULL UNIQUE, name text);
ALTER TABLE currencies REPLICA IDENTITY USING INDEX currencies_code_key;
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE silent (id int PRIMARY KEY);
ALTER TABLE silent REPLICA IDENTITY NOTHING;
CREATE UNLOGGED TABLE cache_entries (key text PRIMARY KEY, value bytea);

-- A key that the log does not carry before version 18.
CREATE TABLE slugs (title text, slug text GENERATED ALWAYS AS (lower(title)) STORED PRIMARY KEY);

CREATE TABLE derived (id int PRIMARY KEY, code text, tenant_id int GENERATED ALWAYS AS (length(code)) STORED);

-- A full replica identity, and an index that would do.
CREATE TABLE tickets (id int PRIMARY KEY, tenant_id int NOT NULL, state text);
CREATE UNIQUE INDEX tickets_by_tenant ON tickets (tenant_id, id);
CREATE TABLE comments (id int PRIMARY KEY, tenant_id int NOT NULL, ticket_id int REFERENCES tickets);
ALTER TABLE comments REPLICA IDENTITY FULL;

-- Partitions, of which a file names the root.
CREATE TABLE events (id bigint, day date, user_id bigint REFERENCES users, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE events_2024 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (id);
CREATE TABLE events_2025_rest PARTITION OF events_2025 DEFAULT;
CREATE TABLE metrics (tenant_id int, at timestamptz, id int, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE metrics_all PARTITION OF metrics DEFAULT;

-- Inheritance; the child of the second has no key, so its parent cannot be mapped either.
CREATE TABLE shapes (id int PRIMARY KEY, name text);
CREATE TABLE circles (radius int, PRIMARY KEY (id)) INHERITS (shapes);
CREATE TABLE vehicles (id int PRIMARY KEY);
CREATE TABLE lorries (load int) INHERITS (vehicles);

-- Names that SQL quotes, and words that YAML, SQL and the format take for something else.
CREATE TABLE "Order" ("Order ID" int, "user" int, version int, "$money" int, PRIMARY KEY ("Order ID", version, "user"));
CREATE TABLE "select" ("from" int PRIMARY KEY, "Order ID" int, "user" int, version int,
    FOREIGN KEY ("Order ID", "user", version) REFERENCES "Order" ("Order ID", "user", version));
CREATE TABLE "null" (id int PRIMARY KEY);
CREATE TABLE "yes" (id int PRIMARY KEY, "null_id" int REFERENCES "null");
CREATE TABLE inv (source text, id int, PRIMARY KEY (source, id));
CREATE TABLE t (id int PRIMARY KEY);
CREATE TABLE for_each ("größe" int PRIMARY KEY, "gr__e" int);
CREATE TABLE "2fa" (id int PRIMARY KEY);
CREATE TABLE "a$b" ("x$$y" int PRIMARY KEY, "${HOME}" int);
CREATE TABLE "user-data" (id int PRIMARY KEY);
CREATE TABLE user_data (id int PRIMARY KEY);
CREATE TABLE "dotted.name" (id int PRIMARY KEY);
CREATE TABLE "line
break" (id int PRIMARY KEY);
CREATE TABLE "it's {here}" ("a: b" int, "c # d" int, "e'f""g" int, PRIMARY KEY ("a: b", "c # d", "e'f""g"));
CREATE TABLE "Legacy App"."Kunde" ("Nr." int PRIMARY KEY, "Straße" text, users bigint REFERENCES users);

-- The same name in several schemas.
CREATE TABLE billing.users (id int PRIMARY KEY, user_id bigint REFERENCES public.users);
CREATE TABLE billing.invoices (number text PRIMARY KEY, tenant_id int, user_id int REFERENCES billing.users);
CREATE TABLE private.users (id int PRIMARY KEY);

-- An extension's table, and what is no table.
CREATE TABLE of_extension (id int PRIMARY KEY);
ALTER EXTENSION plpgsql ADD TABLE of_extension;
CREATE VIEW active_users AS SELECT * FROM users;
CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM orders;

INSERT INTO tenants VALUES (1, 'canary-row-value');
INSERT INTO users (id, tenant_id, email) SELECT i, 1, 'canary-row-value-' || i FROM generate_series(1, 1234) i;
ANALYZE users;
