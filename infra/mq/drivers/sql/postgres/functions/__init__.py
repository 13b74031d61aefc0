"""The PL/pgSQL functions of the queue's frequent operations; each file is one function.

An operation is a function if it has several statements, which must see the changes for which the previous statement
waited: in a function each has its own snapshot (READ COMMITTED), and the call takes one round trip.

A name ends in the function's version. A function that a migration has created never changes, because databases have it
and the previous release calls it: to change one, add the next version and a migration that creates it, call it, and
move the earlier version to `migrations/former/`.

Locks, in the order in which they are acquired:

1. the registry (advisory, class 1650812527; shared by publishers until they commit, exclusive for `declare` and
   `retire`);
2. ids of messages with `dedupe`, sorted;
3. scheduled messages, each by its first delivery, sorted;
4. ordering keys (advisory, class 1650812528, 1024 stripes, sorted; exclusive for a transaction that adds to a mailbox
   until it commits, so that numbers within a mailbox are in the order of commits). A worker that empties a mailbox only
   tries to get a shared lock, and without the lock it does not delete the mailbox;
5. mailboxes, sorted by subscription and key. Publishers insert them and never wait for one.

So workers wait for no transaction of the application, and a promotion step of a worker waits for no lock of another
transaction: it skips the rows that are locked.

Plans are cached, which halves a call's time. Without sequential scans, bitmap scans, hash joins and merge joins, a plan
made for an empty table stays fast when the table is full. A row of known number is searched with `state + 0 = ...`:
with `state = ...` the planner may choose the partial index of that state, which is equally good while that index is
empty, and is read as a whole when it is not.
"""
