#!lua name=megaphone_2

-- The rules of a channel, as functions of Redis. They are the rules of `megaphone.core.log` and
-- `megaphone.core.channel`, in offsets; where this file is silent, the docstrings there hold.
--
-- A channel has seven keys with one hash tag. Each function gets all of them, in this order, so
-- that a channel whose slot is on the move to another master is moved whole:
--
--   1 state     STRING the values below, in MessagePack, one after the other
--   2 events    LIST  the events after `dropped`, as the nodes encode them
--   3 ids       LIST  their ids
--   4 keys      HASH  idempotency key -> "time id", or "?token" while its writers wait; after that
--                     "time id token", with the writer whose node counts the event
--   5 ages      LIST  "time key", oldest first
--   6 queue     LIST  tokens of the events whose writers wait, first come first. An event has the
--                     token of its first writer
--   7 waiting   HASH  token -> the event and its writers, packed; and "!token" for each writer who
--                     was expected to have given up, and may not know yet that the event was dropped
--
-- The state has one value for each of these letters, in this order. It is one text, because to find
-- each field in a hash takes Redis longer than to read them all from a text:
--
--   A   consumer address          n   number of the latest lease
--   L   label                     g d s t f h   offsets: dropped, delivered, sent, end, freed,
--   N   tenant, if it is not          highest_sent (see core/log.py)
--       `default`                 b   id of the last dropped event, "" without one
--   c   time of creation
--   C   capacity                  only if a lease is open:
--   T   TTL                       l   its number; 0 without one
--   x   deadline, 0 while read    o   its node
--   e   epoch                     q   its handle on its node
--   p   events up to this offset  i   name of the reader, "" if it has none
--       may have followers that   k   1 if the reader acknowledges
--       the store lost            w   largest number of events in flight
--   y   1 if no reader has        m   offset up to which the connection of a plain reader has all
--       learned of these losses       bytes, as its node last said
--                                 u   offset up to which a broken end sends nothing again
--                                 v   offset after which the next read starts, if the node dies
--                                 r   how many bytes may be sent to the node before it asks again;
--                                     -1 if it has not learned yet that it has a backlog
--
-- Times are whole milliseconds. The first argument of each function is how long the store was out
-- of order until now, which counts for nothing; or, in tests, `=` and the time itself.
--
-- Functions tell a node something by a message to its inbox. The first word says what:
--
--   E handle first size...   events that the reader is sent; they follow in the same message
--   R handle                 a take may return something new
--   X handle                 the lease is over, because the channel is gone
--   X handle taken           the lease is over, because another reader has it
--   W token result           the event of a waiting writer is accepted (1, or 0 if another writer
--                            with its key counts the event), or the channel has ended (-1)
--
-- Nodes send each other three more:
--
--   A handle inbox number    how is the read of this lease? An operator wants to know
--   T handle inbox number    end this lease, because another reader takes over
--   I number                 the answer to the question of this number, in the same message

local IDEMPOTENCY_MS = 60000
local MOST_KEYS = 10000
local GRACE_MS = 5000         -- so long after a writer should have given up, its node must be dead
local EVENT_OVERHEAD = 200    -- as `core.log.EVENT_OVERHEAD_BYTES`
local LARGEST_SENT = 16384    -- a larger event is named only, and must be asked for
local FETCHED_AT_ONCE = 16
local KEPT_AT_LEAST_MS = 86400000
local DEFAULT_TENANT = 'default'
local CLAIM_MS = 60000        -- so long a channel that is to be created counts
local TOLERANCE_MS = 0.01
local HEAD_BYTES = 1100       -- the longest ids of an event and of a stream, and a time

local function time_of(argument)
    if string.sub(argument, 1, 1) == '=' then
        return tonumber(string.sub(argument, 2))
    end
    local time = redis.call('TIME')
    return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) - tonumber(argument)
end

-- The keys of a channel whose first key is given: those that each append needs, and of the others
-- each when it is needed.
local SUFFIXES = {'', ':e', ':i', ':k', ':a', ':q', ':w'}
local Keys = {}
function Keys.__index(keys, i)
    local key = SUFFIXES[i] and keys[1] .. SUFFIXES[i]
    keys[i] = key
    return key
end

local function keys_of(key)
    return setmetatable({key, key .. SUFFIXES[2], key .. SUFFIXES[3]}, Keys)
end

-- The state

local Channel = {}
Channel.__index = Channel

-- Returns the channel; nil if there is none, if it has expired and only waits to be removed, or if it
-- belongs to another tenant than the named one ('' stands for any).
local function load(keys, now, also_expired, tenant)
    local stored = redis.call('GET', keys[1])
    if not stored then
        return nil
    end
    local A, L, N, c, C, T, x, e, p, y, n, g, d, s, t, f, h, b, l, o, q, i, k, w, m, u, v, r
        = cmsgpack.unpack(stored)
    if x > 0 and now >= x and not also_expired then
        return nil
    end
    if tenant and tenant ~= '' and tenant ~= (N == '' and DEFAULT_TENANT or N) then
        return nil
    end
    -- More than 32 fields would take a table twice as large.
    return setmetatable({
        A = A, L = L, N = N, c = c, C = C, T = T, x = x, e = e, p = p, y = y, n = n,
        g = g, d = d, s = s, t = t, f = f, h = h, b = b,
        l = l or 0, o = o, q = q, i = i, k = k, w = w, m = m, u = u, v = v, r = r,
        keys = keys, now = now, stored = stored,
    }, Channel)
end

function Channel:packed()
    if self.l == 0 then
        return cmsgpack.pack(
            self.A, self.L, self.N, self.c, self.C, self.T, self.x, self.e, self.p, self.y, self.n,
            self.g, self.d, self.s, self.t, self.f, self.h, self.b
        )
    end
    return cmsgpack.pack(
        self.A, self.L, self.N, self.c, self.C, self.T, self.x, self.e, self.p, self.y, self.n,
        self.g, self.d, self.s, self.t, self.f, self.h, self.b,
        self.l, self.o, self.q, self.i, self.k, self.w, self.m, self.u, self.v, self.r
    )
end

-- Writes the state, if it has changed.
function Channel:save()
    local state = self:packed()
    if state ~= self.stored then
        redis.call('SET', self.keys[1], state, 'KEEPTTL')
    end
end

local function tell(node, message)
    redis.call('PUBLISH', node, message)
end

-- The log

function Channel:id_at(offset)
    if offset > self.g then
        return redis.call('LINDEX', self.keys[3], offset - self.g - 1)
    end
    return self.b == '' and '-' or self.b
end

-- Returns the offset of an event, or nil. It looks from the end first, where cursors point.
function Channel:find(id)
    local place = redis.call('LPOS', self.keys[3], id, 'RANK', -1)
    return place and self.g + place + 1 or nil
end

function Channel:find_cursor(cursor)
    local offset = self:find(cursor)
    if not offset and cursor == (self.b == '' and '-' or self.b) then
        return self.g
    end
    return offset
end

function Channel:push(event, id)
    redis.call('RPUSH', self.keys[2], event)
    redis.call('RPUSH', self.keys[3], id)
    self.t = self.t + 1
end

-- Adds the first ones of some events.
function Channel:push_some(events, ids, count)
    redis.call('RPUSH', self.keys[2], unpack(events, 1, count))
    redis.call('RPUSH', self.keys[3], unpack(ids, 1, count))
    self.t = self.t + count
end

-- Drops delivered events beyond the capacity.
function Channel:trim()
    local surplus = self.d - self.C - self.g
    if surplus == 1 then
        self.b = redis.call('LPOP', self.keys[3])
        redis.call('LPOP', self.keys[2])
        self.g = self.g + 1
    elseif surplus > 1 then
        self.b = redis.call('LINDEX', self.keys[3], surplus - 1)
        redis.call('LTRIM', self.keys[2], surplus, -1)
        redis.call('LTRIM', self.keys[3], surplus, -1)
        self.g = self.d - self.C
    end
end

-- Idempotency keys

function Channel:forget_old_keys()
    while true do
        local oldest = redis.call('LINDEX', self.keys[5], 0)
        if not oldest then
            return
        end
        local at, key = string.match(oldest, '^(%d+) (.*)$')
        local is_old = tonumber(at) < self.now - IDEMPOTENCY_MS
        if not is_old and redis.call('LLEN', self.keys[5]) <= MOST_KEYS then
            return
        end
        redis.call('LPOP', self.keys[5])
        local known = redis.call('HGET', self.keys[4], key)
        if known and string.match(known, '^%d+') == at then
            redis.call('HDEL', self.keys[4], key)
        end
    end
end

-- Returns the id of the event that was accepted with a key; or nil and the token of its waiter.
function Channel:known(key)
    self:forget_old_keys()
    local known = redis.call('HGET', self.keys[4], key)
    if not known then
        return nil
    end
    if string.sub(known, 1, 1) == '?' then
        return nil, string.sub(known, 2)
    end
    return string.match(known, ' (%S+)')
end

-- `token` is that of the writer whose node counts the event, if it has waited.
function Channel:remember(key, id, token)
    local at = string.format('%.0f', self.now)
    redis.call('HSET', self.keys[4], key, at .. ' ' .. id .. (token and ' ' .. token or ''))
    redis.call('RPUSH', self.keys[5], at .. ' ' .. key)
    self:forget_old_keys()
end

-- Writers that wait. The record of an event that waits has its id, its key and the event, and then
-- for each of its writers when that writer gives up, its node and its token.

local FIRST_WRITER = 4

-- Returns where in a record the writer is that gives up last. It decides how long the event waits,
-- and counts it: the nodes of the others are less likely to live.
local function last_writer(record)
    local last = FIRST_WRITER
    for i = FIRST_WRITER + 3, #record, 3 do
        if record[i] >= record[last] then
            last = i
        end
    end
    return last
end

-- Tells the writers of a record that it is accepted, and counted by the one with a token; or,
-- without a token, that the channel has ended.
function Channel:tell_writers(record, counts)
    for i = FIRST_WRITER, #record, 3 do
        local token = record[i + 2]
        local result = not counts and '-1' or token == counts and '1' or '0'
        tell(record[i + 1], 'W ' .. token .. ' ' .. result)
    end
end

-- Forgets an event that has left the queue unaccepted. Writers that it still has will ask.
function Channel:drop(token, record)
    redis.call('HDEL', self.keys[7], token)
    if record[2] ~= '' then
        redis.call('HDEL', self.keys[4], record[2])
    end
    for i = FIRST_WRITER, #record, 3 do
        redis.call('HSET', self.keys[7], '!' .. record[i + 2], '')
    end
end

-- Accepts the events of waiting writers in the places that are free.
function Channel:admit()
    while self.t - self.f < self.C do
        local token = redis.call('LPOP', self.keys[6])
        if not token then
            return
        end
        local record = cmsgpack.unpack(redis.call('HGET', self.keys[7], token))
        local last = last_writer(record)
        if record[last] + GRACE_MS < self.now then      -- their nodes have died, or stand still
            self:drop(token, record)
        else
            local id, key, event, counts = record[1], record[2], record[3], record[last + 2]
            redis.call('HDEL', self.keys[7], token)
            self:push(event, id)
            if key ~= '' then
                self:remember(key, id, counts)
            end
            self:tell_writers(record, counts)
        end
    end
end

-- Writers wait only while the channel is full, because `admit` follows whenever a place is freed.
function Channel:is_full()
    return self.t - self.f >= self.C
end

-- Frees the places up to `delivered`, and uses them.
function Channel:free()
    local may_have_waiting = self:is_full()
    if self.d > self.f then
        self.f = self.d
    end
    self:trim()
    if may_have_waiting then
        self:admit()
    end
end

-- Makes the next take start after an offset, with no event in flight.
function Channel:rewind(offset)
    self.d = offset
    self.s = offset
    self:free()
end

-- Readers

-- Returns how many more events the reader may be sent. An event that a plain reader was sent is
-- delivered, and `trim` keeps as many of these as the capacity: so the node must not have more
-- that the connection does not have yet.
function Channel:room()
    if self.k == 1 then
        return self.w - (self.s - self.d)
    end
    return self.C - (self.s - self.m)
end

-- Returns the first offset, the length of the backlog, and the events.
function Channel:take(limit, max_bytes, credit)
    local first, wanted = self.s + 1, math.min(self.t - self.s, limit, self:room())
    local events = {}
    local left = max_bytes
    while #events < wanted and left > 0 do
        local from = self.s - self.g + #events
        local more = math.min(FETCHED_AT_ONCE, wanted - #events)
        for _, event in ipairs(redis.call('LRANGE', self.keys[2], from, from + more - 1)) do
            left = left - #event - EVENT_OVERHEAD
            if left < 0 and #events > 0 then
                break
            end
            events[#events + 1] = event
        end
    end
    if #events > 0 then
        self:mark_sent(self.s + #events)
    end
    local must_wait = self.t == self.s or (self.k == 1 and self:room() <= 0)
    self.r = must_wait and credit or -1
    return {first, self.t - self.s, events}
end

function Channel:mark_sent(last)
    self.s = last
    if last > self.h then
        self.h = last
    end
    if self.k == 0 and last > self.d then
        self.d = last
        self:free()
    end
end

local function sizes_of(events, count)
    local sizes = ''
    for i = 1, count do
        sizes = sizes .. ' ' .. #events[i]
    end
    return sizes
end

-- Sends new events, the first `added` of a list, to a reader that waits for them. Returns what its
-- node must be told, if its node is the caller, or nil: handle, first offset, how many are sent,
-- and 1 if the reader must ask, else 0. Another node is told by a message.
function Channel:hand_over(events, added, caller)
    if self.l == 0 or self.r < 0 then
        return nil
    end
    local first, count = self.s + 1, 0
    if self.t - added == self.s then      -- else the window was closed, and there is a backlog
        local room, left = self:room(), self.r
        while count < added and count < room and left > 0 do
            local size = #events[count + 1]
            if size > LARGEST_SENT then
                break
            end
            count = count + 1
            left = left - size - EVENT_OVERHEAD
        end
        self.r = left
    end
    if count > 0 then
        self:mark_sent(self.s + count)
    end
    local has_room = self:room() > 0
    local must_ask = self.r <= 0 or (has_room and self.t > self.s) or (self.k == 0 and not has_room)
    if must_ask then
        self.r = -1
    end
    if self.o == caller then
        return self.q, first, count, must_ask and 1 or 0
    end
    if count > 0 then
        tell(self.o, 'E ' .. self.q .. ' ' .. string.format('%.0f', first) .. sizes_of(events, count)
            .. '\n' .. table.concat(events, '', 1, count))
    end
    if must_ask then
        tell(self.o, 'R ' .. self.q)
    end
    return nil
end

-- Lets the reader ask again, if it waits and there is something for it.
function Channel:wake_reader()
    if self.l > 0 and self.r >= 0 and self.t > self.s and self:room() > 0 then
        self.r = -1
        tell(self.o, 'R ' .. self.q)
    end
end

function Channel:end_lease(clean, upto)
    if self.k == 1 then
        self.s = self.d
    else
        self:rewind(math.min(math.max(upto, self.u, self.g), self.s))
    end
    if clean then
        self.y = 0
    end
    self.l = 0
    self.x = self.now + self.T
    self:free()
end

-- The end

local function close(self)
    local lost = self.t - math.max(self.s, self.h)
    if self.l > 0 then
        tell(self.o, 'X ' .. self.q)
    end
    for _, token in ipairs(redis.call('LRANGE', self.keys[6], 0, -1)) do
        self:tell_writers(cmsgpack.unpack(redis.call('HGET', self.keys[7], token)), nil)
    end
    redis.call('DEL', unpack(self.keys))
    local tenant = self.N == '' and DEFAULT_TENANT or self.N
    return {1, self.A, self.now - self.c, math.max(0, lost), tenant}
end

-- The functions. Each returns nothing (nil) if there is no such channel.

local functions = {}

-- time, address, capacity, TTL, epoch, label, tenant -> 1; 0 if the channel is there already
function functions.create(keys, args)
    local now = time_of(args[1])
    if redis.call('EXISTS', keys[1]) == 1 then
        return 0
    end
    local ttl = tonumber(args[4])
    local tenant = args[7] or DEFAULT_TENANT
    local self = setmetatable({
        A = args[2], L = args[6] or '', N = tenant == DEFAULT_TENANT and '' or tenant,
        c = now, C = tonumber(args[3]), T = ttl, x = now + ttl, e = tonumber(args[5]), p = 0, y = 0, n = 0,
        g = 0, d = 0, s = 0, t = 0, f = 0, h = 0, b = '', l = 0,
    }, Channel)
    redis.call('SET', keys[1], self:packed(), 'PX', string.format('%.0f', ttl + KEPT_AT_LEAST_MS))
    return 1
end

function Channel:enter_epoch(epoch)
    if self.e < epoch then
        self.e = epoch
        self.p = self.t
        self.y = 1
        if self.l > 0 then      -- its reader must learn of the gap before it gets what follows
            tell(self.o, 'X ' .. self.q)
            self:end_lease(false, self.v)
        end
    end
end

-- time, epoch, node, tenant, then for each event: id, key ('' without one), event
-- -> results, with a space between two, and then what the reader of this node must be told (or
-- nothing). The result of an event is `A` (accepted), `K` and the id of an earlier event with the
-- same key, or `F` (full). The later events are then not tried, and left out.
function functions.append(keys, args)
    local self = load(keys, time_of(args[1]), false, args[4])
    if not self then
        return nil
    end
    self:enter_epoch(tonumber(args[2]))
    local results, accepted = {}, {}
    local is_full = self:is_full()
    for i = 5, #args, 3 do
        local id, key, event = args[i], args[i + 1], args[i + 2]
        local known, token
        if key ~= '' then
            known, token = self:known(key)
        end
        if known then
            results[#results + 1] = 'K' .. known
        elseif token or is_full then
            results[#results + 1] = 'F'
            break
        else
            self:push(event, id)
            accepted[#accepted + 1] = event
            results[#results + 1] = 'A'
            is_full = self.t - self.f >= self.C
            if key ~= '' then
                self:remember(key, id)
            end
        end
    end
    local handle, first, count, must_ask
    if #accepted > 0 then
        handle, first, count, must_ask = self:hand_over(accepted, #accepted, args[3])
    end
    self:save()
    return {table.concat(results, ' '), handle, first, count, must_ask}
end

-- time, epoch, node, tenant, then for each event: id, event; all to many channels, of each of which
-- only the first key is named: that is quicker, and only in a cluster slots move
-- -> for each channel how many of the events found a place, -1 if there is no such channel; then what
-- readers of this node must be told, for each of them what `hand_over` returns
function functions.append_to_all(keys, args)
    local now, epoch, node, tenant = time_of(args[1]), tonumber(args[2]), args[3], args[4]
    local ids, events = {}, {}
    for i = 5, #args, 2 do
        ids[#ids + 1], events[#events + 1] = args[i], args[i + 1]
    end
    local counts, told = {}, {}
    for i = 1, #keys do
        local self = load(keys_of(keys[i]), now, false, tenant)
        local count = -1
        if self then
            self:enter_epoch(epoch)
            count = math.max(0, math.min(#events, self.C - self.t + self.f))
            if count > 0 then
                self:push_some(events, ids, count)
                local handle, first, handed, must_ask = self:hand_over(events, count, node)
                if handle then
                    local n = #told
                    told[n + 1], told[n + 2], told[n + 3], told[n + 4] = handle, first, handed, must_ask
                end
            end
            self:save()
        end
        counts[i] = count
    end
    return {counts, told}
end

-- time, epoch, node, token, how long the writer waits, most events that may wait, id, key, event,
-- tenant
-- -> as `append` for one event; or {{'W', id}} if the writer waits, with the id of the event, which
-- an earlier writer with its key may have brought; {{'L', n}} if too many wait
function functions.wait(keys, args)
    local self = load(keys, time_of(args[1]), false, args[10])
    if not self then
        return nil
    end
    self:enter_epoch(tonumber(args[2]))
    local node, token, id, key, event = args[3], args[4], args[7], args[8], args[9]
    local gives_up_at = self.now + tonumber(args[5])
    local known, joined
    if key ~= '' then
        known, joined = self:known(key)
    end
    if known then
        return {{'K' .. known}}
    end
    if joined then
        local record = cmsgpack.unpack(redis.call('HGET', keys[7], joined))
        local n = #record
        record[n + 1], record[n + 2], record[n + 3] = gives_up_at, node, token
        redis.call('HSET', keys[7], joined, cmsgpack.pack(record))
        self:save()
        return {{'W', record[1]}}
    end
    if not self:is_full() then
        self:push(event, id)
        if key ~= '' then
            self:remember(key, id)
        end
        local handle, first, count, must_ask = self:hand_over({event}, 1, node)
        self:save()
        return {{'A'}, handle and {handle, first, count, must_ask}}
    end
    local waiting = redis.call('LLEN', keys[6])
    if waiting >= tonumber(args[6]) then
        return {{'L', waiting}}
    end
    redis.call('RPUSH', keys[6], token)
    redis.call('HSET', keys[7], token, cmsgpack.pack({id, key, event, gives_up_at, node, token}))
    if key ~= '' then
        redis.call('HSET', keys[4], key, '?' .. token)
    end
    self:save()
    return {{'W', id}}
end

-- Removes a writer from a record. Returns whether it was there.
local function leave(record, token)
    for i = FIRST_WRITER, #record, 3 do
        if record[i + 2] == token then
            for _ = 1, 3 do
                table.remove(record, i)
            end
            return true
        end
    end
    return false
end

-- time, token of the writer, its key
-- -> 1 if its event was accepted before, or 0 if another writer with its key counts that event;
-- else -1, and the writer waits no more. Its event is then accepted only for another writer with its
-- key who has not given up yet.
function functions.withdraw(keys, args)
    local self = load(keys, time_of(args[1]), true)
    if not self then
        return nil
    end
    local token, key = args[2], args[3]
    if redis.call('HDEL', keys[7], '!' .. token) == 1 then
        return -1
    end
    local known = key ~= '' and redis.call('HGET', keys[4], key) or ''
    local first = key == '' and token or string.match(known, '^%?(.*)$')
    local packed = first and redis.call('HGET', keys[7], first)
    local record = packed and cmsgpack.unpack(packed)
    if not record or not leave(record, token) then
        local counts = string.match(known, '^%d+ %S+ (%S+)$')
        return (counts or token) == token and 1 or 0
    end
    local gives_up_at = record[last_writer(record)]
    if gives_up_at and gives_up_at > self.now then
        redis.call('HSET', keys[7], first, cmsgpack.pack(record))
    else      -- nobody is left, but for writers on nodes that have died or are slow
        redis.call('LREM', keys[6], 1, first)
        self:drop(first, record)
    end
    return -1
end

-- time, epoch, node, handle, address, has cursor, cursor, acknowledges, window, takes over (0 from
-- nobody, 1 from anybody, 2 from a reader of the same name), node that is dead (''), limit, bytes,
-- credit, tenant, name of the reader, node that was asked to end its lease ('')
-- -> {'B', node, handle, 1 if the node must be asked to end the lease, else 0} if another lease is
-- open; else {'L', lease, recovered (1, 0, -1 for neither), cursor, position, backlog before the take,
-- highest offset that was sent before the take, what `take` returns}
function functions.lease(keys, args)
    local self = load(keys, time_of(args[1]), false, args[15])
    if not self or self.A ~= args[5] then
        return nil
    end
    self:enter_epoch(tonumber(args[2]))
    if self.l > 0 then
        local ends = args[10] == '1' or args[10] == '2' and self.i == args[16]
        local is_asked = self.o == args[3] or self.o == args[17]
        if not (ends and is_asked) and self.o ~= args[11] then
            self:save()
            return {'B', self.o, self.q, ends and 1 or 0}
        end
        tell(self.o, 'X ' .. self.q .. ' taken')
        self:end_lease(false, self.v)
    end
    local recovered = self.y == 1 and 0 or -1
    if args[6] == '1' then
        local offset = self:find_cursor(args[7])
        recovered = offset and (self.p == 0 or offset > self.p) and 1 or 0
        self:rewind(offset or self.g)
    end
    self.n = self.n + 1
    self.l, self.o, self.q, self.i = self.n, args[3], args[4], args[16]
    self.k, self.w = tonumber(args[8]), tonumber(args[9])
    self.m, self.u, self.v, self.x = self.s, self.s, self.s, 0
    local cursor, position, ready, sent = self:id_at(self.s), self.s, self.t - self.s, self.h
    local taken = self:take(tonumber(args[12]), tonumber(args[13]), tonumber(args[14]))
    self:save()
    return {'L', self.l, recovered, cursor, position, ready, sent, taken}
end

-- time, lease, last offset that the node has, offset after which a broken end sends again, limit,
-- bytes, credit -> first offset, backlog, events; -1 if the lease is over
function functions.take(keys, args)
    local self = load(keys, time_of(args[1]))
    if not self then
        return nil
    end
    if self.l ~= tonumber(args[2]) then
        return -1
    end
    -- The reader may have acknowledged more than the node has.
    local have = math.max(tonumber(args[3]), self.u, self.g, self.k == 1 and self.d or 0)
    self.m, self.v = have, tonumber(args[4])
    if have < self.s then       -- a message was lost
        self.s = have
        if self.k == 0 then
            self.d = have
        end
    end
    local taken = self:take(tonumber(args[5]), tonumber(args[6]), tonumber(args[7]))
    self:save()
    return taken
end

-- time, lease, clean, offset after which the next read of a plain reader starts, highest offset that
-- any reader was given, as the node knows -> 1; 0 if over
function functions.release(keys, args)
    local self = load(keys, time_of(args[1]), true)
    if not self then
        return nil
    end
    if self.l ~= tonumber(args[2]) then
        return 0
    end
    self:end_lease(args[3] == '1', tonumber(args[4]))
    -- The node did not give its client all that it was sent.
    self.h = math.min(self.h, math.max(tonumber(args[5]), self.d))
    self:save()
    return 1
end

-- time, node, handle -> 1; 0 if the node has no lease with this handle. For a node that does not
-- know whether it has got a lease.
function functions.give_back(keys, args)
    local self = load(keys, time_of(args[1]), true)
    if not self or self.l == 0 or self.o ~= args[2] or self.q ~= args[3] then
        return 0
    end
    self:end_lease(false, self.v)
    self:save()
    return 1
end

-- time, address, id, tenant -> how many events were delivered by it
function functions.acknowledge(keys, args)
    local self = load(keys, time_of(args[1]), false, args[4])
    if not self or self.A ~= args[2] then
        return nil
    end
    local offset = self:find(args[3])
    if not offset or offset > self.h then
        return 0
    end
    local before = self.d
    if self.l > 0 and self.k == 0 then
        before = math.max(self.u, self.g)
        self.u = math.max(self.u, offset)
    end
    if offset > self.d then
        self.d = offset
        self.s = math.max(self.s, offset)
        self:free()
    end
    self:wake_reader()
    self:save()
    return math.max(0, offset - before)
end

-- time, lease, offset, last offset -> 1 if all events up to the first offset are delivered, and those
-- up to the last one were delivered by this; 0 if not
function functions.pass_over(keys, args)
    local self = load(keys, time_of(args[1]))
    if not self then
        return nil
    end
    local last = tonumber(args[4])
    if self.l ~= tonumber(args[2]) or self.d < tonumber(args[3]) or last > self.s then
        return 0
    end
    if last > self.d then
        self.d = last
        self:free()
        self:wake_reader()
        self:save()
    end
    return 1
end

-- time, tenant -> the address of the channel if it lives
function functions.exists(keys, args)
    local self = load(keys, time_of(args[1]), false, args[2])
    return self and self.A
end

-- time -> address
function functions.address(keys, args)
    local self = load(keys, time_of(args[1]), true)
    return self and self.A
end

-- Returns the first bytes of an event: its id, its stream id and its time.
local function head_of(event)
    return event and string.sub(event, 1, HEAD_BYTES) or ''
end

-- Returns how many bytes of memory the keys of a channel take; -1 if the node may not ask.
local function memory_of(keys)
    local sum = 0
    for i = 1, #keys do
        local size = redis.pcall('MEMORY', 'USAGE', keys[i])
        if type(size) == 'number' then
            sum = sum + size
        elseif type(size) == 'table' then
            return -1
        end
    end
    return sum
end

-- For operators: time, whether the size is asked for -> address, label, tenant, age, deadline less the
-- time (-1 while it is read), capacity, TTL, the offsets g d s t f, writers that wait, size (-1: not
-- asked for), number of the latest lease, `{node, handle, acknowledges, name}` of the open lease (or nothing), the first bytes of
-- the oldest event with a place, of the last event, and of the first one that waits ('' without one)
function functions.look(keys, args)
    local self = load(keys, time_of(args[1]))
    if not self then
        return nil
    end
    local oldest = self.t > self.f and redis.call('LINDEX', keys[2], self.f - self.g)
    local last = self.t > self.g and redis.call('LINDEX', keys[2], -1)
    local waiting, first = redis.call('LLEN', keys[6]), nil
    if waiting > 0 then
        local record = redis.call('HGET', keys[7], redis.call('LINDEX', keys[6], 0))
        first = record and cmsgpack.unpack(record)[3]
    end
    return {
        self.A, self.L, self.N == '' and DEFAULT_TENANT or self.N, self.now - self.c,
        self.x > 0 and self.x - self.now or -1, self.C, self.T, self.g, self.d, self.s, self.t, self.f,
        waiting, args[2] == '1' and memory_of(keys) or -1, self.n,
        self.l > 0 and {self.o, self.q, self.k, self.i} or {}, head_of(oldest), head_of(last), head_of(first),
    }
end

-- time, node that is dead (''), when it died -> {1, address, age, lost events, tenant} if the channel
-- has expired now; else {2, when to look again, node of the open lease ('' without one)}
function functions.expire(keys, args)
    local self = load(keys, time_of(args[1]), true)
    if not self then
        redis.call('DEL', unpack(keys))
        return nil
    end
    if self.l > 0 and self.o == args[2] then
        tell(self.o, 'X ' .. self.q)      -- if it only stood still
        self:end_lease(false, self.v)
        self.x = tonumber(args[3]) + self.T
        self:save()
    end
    if self.x > 0 and self.now >= self.x then
        return close(self)
    end
    for _, key in ipairs(keys) do
        redis.call('PEXPIRE', key, self.T + KEPT_AT_LEAST_MS)
    end
    return {2, self.x > 0 and self.x or self.now + self.T, self.l > 0 and self.o or ''}
end

-- time, tenant -> {1, address, age, lost events, tenant}
function functions.remove(keys, args)
    local self = load(keys, time_of(args[1]), false, args[2])
    return self and close(self) or nil
end

-- Concerns a tenant, and has its keys: what it counts of its channels and of its creations.
--
-- time, tag of a channel that is to be created, most channels of the tenant (-1: any number),
-- creations a second (0: any number)
-- -> {0} if it may be created, which is counted then; {1, microseconds until it may}; {2} if the
-- tenant has as many channels as it may. It is the arithmetic of `megaphone.core.quotas`.
function functions.claim(keys, args)
    local now, most, per_s = time_of(args[1]), tonumber(args[3]), tonumber(args[4])
    if most >= 0 then
        -- Their node has died, or they were refused, before they were created.
        local lapsed = redis.call('ZRANGEBYSCORE', keys[1], 0, now - CLAIM_MS, 'LIMIT', 0, 1000)
        if #lapsed > 0 then
            redis.call('ZREM', keys[1], unpack(lapsed))
        end
        if redis.call('ZCARD', keys[1]) >= most then
            return {2}
        end
    end
    if per_s > 0 then
        local full_at = tonumber(redis.call('HGET', keys[2], 'full_at') or '0')
        local spacing = 1000 / per_s
        local owed, allowed = full_at - now, math.max(1000, spacing) - spacing
        if owed > allowed + TOLERANCE_MS then
            return {1, math.ceil((owed - allowed) * 1000)}
        end
        full_at = math.max(full_at, now) + spacing
        redis.call('HSET', keys[2], 'full_at', string.format('%.3f', full_at))
        redis.call('PEXPIRE', keys[2], math.ceil(full_at - now) + 1000)
    end
    if most >= 0 then
        redis.call('ZADD', keys[1], string.format('%.0f', now), args[2])
    end
    return {0}
end

-- These two concern the store, and have the keys of the nodes and of the whole store.

-- what only this run of the server has, and only since it became a master -> epoch. What the store
-- does not know is a restart or a new master, which may have lost events: it starts a new epoch.
function functions.greet(keys, args)
    local epoch = tonumber(redis.call('HGET', keys[2], 'epoch') or '0')
    if redis.call('HSETNX', keys[2], 'run:' .. args[1], '1') == 1 then
        epoch = math.max(epoch + 1, time_of('0'))
        redis.call('HSET', keys[2], 'epoch', string.format('%.0f', epoch))
    end
    return epoch
end

-- node, how long a node may be silent, when a silent node is forgotten
-- -> time, epoch, how long the store was out of order until now, nodes that live
function functions.beat(keys, args)
    local now = time_of('0')
    local silent, forgotten = tonumber(args[2]), tonumber(args[3])
    local last = tonumber(redis.call('HGET', keys[2], 'beat') or now)
    local away = tonumber(redis.call('HGET', keys[2], 'away') or '0')
    if now - last > silent then
        away = away + now - last
        redis.call('HSET', keys[2], 'away', string.format('%.0f', away))
    elseif now < last then      -- the clock was set back
        away = away + now - last
        redis.call('HSET', keys[2], 'away', string.format('%.0f', away))
    end
    redis.call('HSET', keys[2], 'beat', string.format('%.0f', now))
    redis.call('HSET', keys[1], args[1], string.format('%.0f', now - away))
    local living = {}
    local nodes = redis.call('HGETALL', keys[1])
    for i = 1, #nodes, 2 do
        local age = now - away - tonumber(nodes[i + 1])
        if age > forgotten then
            redis.call('HDEL', keys[1], nodes[i])
        elseif age <= silent then
            living[#living + 1] = nodes[i]
        end
    end
    local epoch = tonumber(redis.call('HGET', keys[2], 'epoch') or '0')
    return {string.format('%.0f', now), epoch, string.format('%.0f', away), living}
end

-- A full store must let its channels be read, acknowledged, released and removed. So only the
-- functions that store something new are refused when there is no memory.
local function register(names, flags)
    for i = 1, #names do
        redis.register_function{
            function_name = 'mp2_' .. names[i], callback = functions[names[i]], flags = flags,
        }
    end
end

register({'create', 'append', 'append_to_all', 'wait', 'claim'}, {})
register({'withdraw', 'lease', 'take', 'release', 'give_back', 'acknowledge', 'pass_over', 'exists', 'expire', 'remove',
          'greet', 'beat'}, {'allow-oom'})
register({'address', 'look'}, {'no-writes'})
