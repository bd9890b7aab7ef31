INSERT INTO sellers SELECT i, 'seller ' || i FROM generate_series(1, 3) AS i;
INSERT INTO products SELECT i, 1, 1 + i % 3, 'product ' || i, i * 100 FROM generate_series(1, 20) AS i;
INSERT INTO users SELECT 1, i, 'user' || i || '@example.com', 'user ' || i FROM generate_series(1, 20) AS i;
INSERT INTO stock SELECT i, 1, 10 FROM generate_series(1, 20) AS i;
