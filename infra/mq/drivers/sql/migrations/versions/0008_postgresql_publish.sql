CREATE INDEX beneath_delivery_due_message ON beneath_delivery (message_id) WHERE state + 0 = 3;
CREATE INDEX beneath_delivery_due_mailbox ON beneath_delivery (mailbox, due_at, id)
    WHERE state - 3 = 0 AND mailbox IS NOT NULL;

DROP INDEX beneath_delivery_scheduled_message;
DROP INDEX beneath_delivery_scheduled_mailbox;
