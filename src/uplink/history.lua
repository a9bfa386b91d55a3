-- The messages of rooms with history: deduplicated, numbered, stored and published in one step.
-- ARGV: prefix, operation, then the operation's own. Key names depend on the data, so this does not run on a
-- Redis Cluster.
--
-- position:{room} hash: e epoch (8 raw bytes), o offset of the last message, r replication id of the primary that
--   numbered it, t milliseconds at which the last message came, w window whose `sent` hash has its expiry
-- history:{room} stream, ids {offset}-0: t milliseconds, s sender (origin and connection, 16 raw bytes), e event
-- sent:{room}:{window} hash: sender and messageId -> offset
-- calls:{origin} string: number of the last publishing call of that process
local prefix, operation = ARGV[1], ARGV[2]
local POSITION_SECONDS = 86400 -- a position outlives its messages: a quiet room keeps its epoch
local RENEW_MS = 3600000 -- how much of that may pass before it is renewed
local WINDOW_MS = 300000 -- messageIds are known for one to two windows
local CALLS_SECONDS = 600
local EXPIRY_SLACK_MS = 1000 -- a stream that is missing before its time was lost, not expired
local CHUNK = 64 -- entries fetched at once: bounds what a room of large messages costs

local function position_of(room) return prefix .. 'position:' .. room end
local function history_of(room) return prefix .. 'history:' .. room end
local function sent_in(room, window) return prefix .. 'sent:' .. room .. ':' .. window end

local function digits(number) return string.format('%.0f', number) end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Who numbers: changes when Redis restarts and when a replica is promoted, so that messages which the new primary
-- does not have are never mistaken for those it gives the same offsets. Nothing on a replica.
local function primary()
  local info = redis.call('INFO', 'replication')
  return string.find(info, 'role:master', 1, true) and string.match(info, 'master_replid:(%x+)')
end

local NO_PRIMARY = { err = 'READONLY this Redis is a replica' }

-- The room's epoch, offset, time of the last message and window. Begins an epoch if the room has none, if another
-- primary began it, or if messages that must still be there are not. Offsets go on in the new epoch, as do the
-- messages that are left and what is known of repetitions: all that this Redis has was once acknowledged.
local function open(room, replid, time, ttl, fresh, exists)
  local key = position_of(room)
  local found = redis.call('HMGET', key, 'e', 'o', 'r', 't', 'w')
  local epoch, offset, last = found[1], tonumber(found[2]), tonumber(found[4])
  if not epoch or not offset then
    redis.call('DEL', history_of(room), sent_in(room, digits(math.floor(time / WINDOW_MS))),
      sent_in(room, digits(math.floor(time / WINDOW_MS) - 1)))
    epoch, offset, last = fresh, 0, 0
  elseif found[3] ~= replid or (offset > 0 and time - last < ttl and not exists()) then
    epoch, last = fresh, exists() and last or 0
  else
    return epoch, offset, last, found[5]
  end
  redis.call('HSET', key, 'e', epoch, 'o', digits(offset), 'r', replid, 't', digits(last or 0), 'w', '')
  redis.call('EXPIRE', key, POSITION_SECONDS)
  return epoch, offset, last or 0, ''
end

-- The offset that the sender's messageId got before, if it was sent within the last window.
local function repeated(room, window, name)
  return redis.call('HGET', sent_in(room, digits(window)), name)
    or redis.call('HGET', sent_in(room, digits(window - 1)), name)
end

-- One room's messages, from ARGV[at] on: name of the message for repetitions (or empty), sender, event. Adds
-- their offsets to `answers`.
local function store(room, at, count, call, answers)
  local history, time, ttl = history_of(room), call.time, call.ttl
  local renewed = redis.call('PEXPIRE', history, digits(ttl + EXPIRY_SLACK_MS)) == 1
  local epoch, offset, last, expiring =
    open(room, call.replid, time, ttl, call.fresh, function() return renewed end)
  local window, records, first = math.floor(time / WINDOW_MS), {}, offset
  local sent = sent_in(room, digits(window))
  for i = at, at + 3 * (count - 1), 3 do
    local name, sender, event = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local before = name ~= '' and repeated(room, window, name)
    if not before then
      offset = offset + 1
      redis.call('XADD', history, 'MAXLEN', call.size, digits(offset) .. '-0',
        't', digits(time), 's', call.origin .. sender, 'e', event)
      if name ~= '' then
        redis.call('HSET', sent, name, digits(offset))
        if expiring ~= digits(window) then
          expiring = digits(window)
          redis.call('PEXPIRE', sent, 2 * WINDOW_MS)
        end
      end
      -- Record kind 4 of the batch format.
      records[#records + 1] = struct.pack('<BI4', 4, #event + 24) .. epoch
        .. struct.pack('<I8', offset) .. sender .. event
    end
    answers[#answers + 1] = tonumber(before) or offset
  end
  if offset == first then return end
  if not renewed then redis.call('PEXPIRE', history, digits(ttl + EXPIRY_SLACK_MS)) end
  redis.call('HSET', position_of(room), 'o', digits(offset), 't', digits(time), 'w', expiring or '')
  if time - last > RENEW_MS then redis.call('EXPIRE', position_of(room), POSITION_SECONDS) end
  redis.call('PUBLISH', prefix .. 'rooms:' .. room, call.head .. table.concat(records))
end

local operations = {}

-- ARGV: number of the call, whether it may follow any call of before, origin, head of a batch, messages kept, ms
-- kept, epoch to begin with, then for each room: name, number of messages, messages.
function operations.publish()
  local number, begins, origin = tonumber(ARGV[3]), ARGV[4] == '1', ARGV[5]
  local replid = primary()
  if not replid then return NO_PRIMARY end
  -- Calls are carried out in their order or not at all, also when the script was forgotten in between, and never
  -- after those of a later connection.
  local calls = prefix .. 'calls:' .. origin
  local last = tonumber(redis.call('GET', calls) or 0)
  if number <= last or not (begins or number == last + 1) then
    return { err = 'OUTOFORDER another call must come first' }
  end
  -- The first write: when memory is full it fails, and nothing has been done.
  local marked = redis.pcall('SET', calls, ARGV[3], 'EX', CALLS_SECONDS)
  if marked.err then return marked end
  local call = { replid = replid, time = now(), head = ARGV[6], origin = string.sub(ARGV[6], 6, 13),
    size = ARGV[7], ttl = tonumber(ARGV[8]), fresh = ARGV[9] }
  local answers, at = {}, 10
  while ARGV[at] do
    local count = tonumber(ARGV[at + 1])
    store(ARGV[at], at + 2, count, call, answers)
    at = at + 2 + 3 * count
  end
  return answers
end

-- Entries of the room, newest first, from the offset `from` downwards, that `take` wants.
local function walk(room, from, oldest, time, ttl, take)
  while from >= oldest do
    local chunk = redis.call('XREVRANGE', history_of(room), digits(from) .. '-0', digits(oldest) .. '-0',
      'COUNT', CHUNK)
    for _, entry in ipairs(chunk) do
      local fields = entry[2]
      local age = time - tonumber(fields[2])
      -- A message that is missing in between ends what can be given without a gap.
      if entry[1] ~= digits(from) .. '-0' or age >= ttl then return end
      if not take(age, fields[4], fields[6]) then return true end
      from = from - 1
    end
    if #chunk == 0 then return end
  end
end

-- ARGV: room, ms kept, epoch to begin with, offset after which messages are wanted, their bytes at most.
-- Answers epoch, offset, whether bytes alone were the limit, then per message, newest first: age, sender, event.
function operations.read()
  local room, ttl, fresh, after, most = ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
  local replid, time = primary(), now()
  if not replid then return NO_PRIMARY end
  local epoch, offset = open(room, replid, time, ttl, fresh,
    function() return redis.call('EXISTS', history_of(room)) == 1 end)
  local answer, bytes = { epoch, digits(offset), 0 }, 0
  local cut = most > 0 and walk(room, offset, after + 1, time, ttl, function(age, sender, event)
    bytes = bytes + #event
    if bytes > most then return false end
    answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = age, sender, event
    return true
  end)
  answer[3] = cut and 1 or 0
  return answer
end

-- ARGV: room, ms kept, epoch to begin with, epoch that is meant (or empty), offset (or empty), messages at most,
-- their bytes at most, whether the newest come first. Answers epoch, offset, then per message in the order asked
-- for: offset, event.
function operations.page()
  local room, ttl, fresh, wanted = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
  local since, limit, most, reverse = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'
  local replid, time = primary(), now()
  if not replid then return NO_PRIMARY end
  local epoch, offset = open(room, replid, time, ttl, fresh,
    function() return redis.call('EXISTS', history_of(room)) == 1 end)
  local answer = { epoch, digits(offset) }
  if wanted ~= '' and wanted ~= epoch then return answer end
  local bytes, last = 0, nil
  local from, to = since and since + 1 or 1, offset
  if reverse then from, to = 1, since and math.min(since - 1, offset) or offset end
  while limit > 0 and from <= to do
    local command, low, high = 'XRANGE', digits(from) .. '-0', digits(to) .. '-0'
    if reverse then command, low, high = 'XREVRANGE', high, low end
    local chunk = redis.call(command, history_of(room), low, high, 'COUNT', math.min(limit, CHUNK))
    if #chunk == 0 then break end
    for _, entry in ipairs(chunk) do
      local place, fields = tonumber(string.match(entry[1], '^%d+')), entry[2]
      local fresh_enough = time - tonumber(fields[2]) < ttl
      if reverse and not fresh_enough then return answer end
      if fresh_enough then
        bytes = bytes + #fields[6]
        if bytes > most and last then return answer end
        answer[#answer + 1], answer[#answer + 2] = digits(place), fields[6]
        last, limit = place, limit - 1
      end
      if reverse then to = place - 1 else from = place + 1 end
    end
  end
  return answer
end

-- ARGV: rooms. Answers for each its epoch and offset, empty if it has none.
function operations.positions()
  local answer = {}
  for i = 3, #ARGV do
    local found = redis.call('HMGET', position_of(ARGV[i]), 'e', 'o')
    answer[#answer + 1], answer[#answer + 2] = found[1] or '', found[2] or ''
  end
  return answer
end

-- The first command that the user of this connection has no right to, or nothing (Redis 7 and later).
function operations.probe()
  if not redis.acl_check_cmd then return '' end
  local position, history, sent = position_of('probe'), history_of('probe'), sent_in('probe', '0')
  local needed = {
    { 'INFO', 'replication' }, { 'TIME' }, { 'GET', prefix .. 'calls:probe' },
    { 'SET', prefix .. 'calls:probe', '0' }, { 'HMGET', position, 'e' }, { 'HSET', position, 'e', '0' },
    { 'EXPIRE', position, '1' }, { 'HGET', sent, '0' }, { 'PEXPIRE', history, '1' }, { 'EXISTS', history },
    { 'XADD', history, '*', 'e', '0' }, { 'XRANGE', history, '-', '+' }, { 'XREVRANGE', history, '+', '-' },
    { 'DEL', history },
  }
  for _, command in ipairs(needed) do
    if not redis.acl_check_cmd(unpack(command)) then
      return command[1] .. (command[2] and ' on ' .. command[2] or '')
    end
  end
  return ''
end

return operations[operation]()
