\set ON_ERROR_STOP on
create role app login;
create database shop owner app template template0 encoding 'UTF8' locale 'C.UTF-8';
\connect shop app
create table customers (
    id integer primary key,
    name text not null,
    city text not null
);
create table orders (
    id integer generated always as identity primary key,
    customer integer not null references customers,
    placed date not null,
    cents integer not null check (cents > 0)
);
insert into customers
    select n, 'customer ' || n, (array['Oslo', 'Lima', 'Kyoto', 'Accra', 'Perth'])[1 + n % 5]
    from generate_series(1, 20000) n;
insert into orders (customer, placed, cents)
    select 1 + n * 7919 % 20000, date '2025-01-01' + n % 365, 100 + n * 31 % 90000
    from generate_series(1, 100000) n;
create index on orders (customer);
create index on orders (placed);
