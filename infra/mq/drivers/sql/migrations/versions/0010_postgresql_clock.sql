CREATE TABLE beneath_clock (
    id integer PRIMARY KEY,
    ahead double precision NOT NULL,
    since double precision NOT NULL,
    seen double precision NOT NULL
) WITH (fillfactor = 10);
INSERT INTO beneath_clock VALUES (1, 0, 0, '-infinity');
