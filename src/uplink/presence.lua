-- Who is in which room, over all instances. Every operation is one call and therefore atomic.
-- ARGV: prefix, operation, seconds until unrenewed keys expire, head of a presence batch, number of the caller's
-- connection, then the operation's own. Key names depend on the data, so this does not run on a Redis Cluster.
local prefix, operation, ttl, head, connection = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local registry, boots, told = prefix .. 'registry', prefix .. 'boots', prefix .. 'told'
local ROOMS_PER_CALL = 100 -- bounds how long one call blocks Redis

local function entries_of(room) return prefix .. 'presence:' .. room end
local function members_of(room) return prefix .. 'members:' .. room end
local function occupied_by(instance) return prefix .. 'occupied:' .. instance end
local function changes_of(room) return prefix .. 'changes:' .. room end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function digits(number) return string.format('%.0f', number) end

-- While `told` exists, Redis has come back without its data not long ago. Someone is being told a list or a
-- count of this room: what is restored later must be announced to them.
local function note_told(room)
  if redis.call('EXISTS', told) == 1 then redis.call('SADD', told, room) end
end

local function is_untold(room)
  return redis.call('EXISTS', told) == 1 and redis.call('SISMEMBER', told, room) == 0
end

-- The number of a room's next announcement. It begins at the microseconds since 1970, so that no numbering comes to
-- where an earlier one of the room has been.
local function next_change(room)
  local number = redis.call('INCR', changes_of(room))
  if number == 1 then
    local time = redis.call('TIME')
    number = time[1] * 1000000 + time[2]
    redis.call('SET', changes_of(room), digits(number), 'EX', ttl)
  end
  return number
end

-- The number of its last announcement; 0 when there is none.
local function last_change(room) return tonumber(redis.call('GET', changes_of(room)) or 0) end

-- Record kinds 2 and 9 of the batch format.
local function announce(room, joined, member)
  note_told(room)
  local count, number = redis.call('HLEN', members_of(room)), next_change(room)
  redis.call('PUBLISH', prefix .. 'rooms:' .. room,
    head .. struct.pack('<BI4BI4', 2, #member + 5, joined, count) .. member .. struct.pack('<BI4I8', 9, 8, number))
  if count == 0 then redis.call('DEL', changes_of(room)) end
end

local function enter(room, instance, user, member, quietly)
  if redis.call('HSET', entries_of(room), instance .. '|' .. user, member) == 1
    and redis.call('HINCRBY', members_of(room), user, 1) == 1
    and not quietly then
    announce(room, 1, member)
  end
end

local function leave(room, instance, user)
  local field = instance .. '|' .. user
  local member = redis.call('HGET', entries_of(room), field)
  if not member then return end
  redis.call('HDEL', entries_of(room), field)
  if redis.call('HINCRBY', members_of(room), user, -1) <= 0 then
    redis.call('HDEL', members_of(room), user)
    announce(room, 0, member)
  end
end

local function leave_all_but(room, instance, kept)
  local tag = instance .. '|'
  for _, field in ipairs(redis.call('HKEYS', entries_of(room))) do
    local user = string.sub(field, #tag + 1)
    if string.sub(field, 1, #tag) == tag and not kept[user] then leave(room, instance, user) end
  end
end

local function renew(room)
  redis.call('EXPIRE', entries_of(room), ttl)
  redis.call('EXPIRE', members_of(room), ttl)
  redis.call('EXPIRE', changes_of(room), ttl)
end

local function occupy(room, instance)
  redis.call('SADD', occupied_by(instance), room)
  redis.call('EXPIRE', occupied_by(instance), ttl)
  -- An instance that was reaped and does not know it yet must be found by the next reaping.
  redis.call('ZADD', registry, 'NX', digits(now()), instance)
  renew(room)
end

-- Takes away some of an instance's members, and the count of its connections (sessions.lua); true when none are left.
local function clear(instance)
  redis.call('UNLINK', prefix .. 'sessions:' .. instance)
  local rooms = redis.call('SPOP', occupied_by(instance), ROOMS_PER_CALL)
  for _, room in ipairs(rooms) do leave_all_but(room, instance, {}) end
  return redis.call('EXISTS', occupied_by(instance)) == 0
end

-- Whether the instance has registered over a later connection, or as another process: what is still on its way over
-- this one comes too late, and would undo what was done since.
local function is_outdated(instance)
  local holder, latest = string.match(redis.call('HGET', boots, instance) or '', '^(%S+) %d+ (%d+)$')
  if not holder then return false end
  local origin = string.gsub(string.reverse(string.sub(head, 6, 13)), '.',
    function(byte) return string.format('%02x', string.byte(byte)) end)
  return holder ~= origin or tonumber(latest) > tonumber(connection)
end

local OUTDATED = { err = 'OUTDATED the instance has another connection' }

local operations = {}

function operations.join(room, instance, user, member, enters, wanted)
  if enters == '1' then
    if is_outdated(instance) then return OUTDATED end
    enter(room, instance, user, member)
    occupy(room, instance)
  end
  note_told(room)
  return { redis.call('HLEN', members_of(room)), wanted == '1' and redis.call('HVALS', entries_of(room)) or {},
    digits(last_change(room)) }
end

function operations.leave(room, instance, user, last)
  if is_outdated(instance) then return OUTDATED end
  leave(room, instance, user)
  if last == '1' then redis.call('SREM', occupied_by(instance), room) end
  return 0
end

function operations.members(room)
  note_told(room)
  return { redis.call('HLEN', members_of(room)), redis.call('HVALS', entries_of(room)) }
end

-- The rest of ARGV is the instance's members of the room: user, member, user, member … The other instances'
-- members hold the first `held` of them as present: these come back quietly when Redis has lost them, unless
-- someone has been told meanwhile that the room is without them. Answers the numbers of the room's last announcement
-- before and after.
function operations.restore(room, instance, held)
  if is_outdated(instance) then return OUTDATED end
  local kept, before = {}, last_change(room)
  for i = 9, #ARGV, 2 do kept[ARGV[i]] = true end
  leave_all_but(room, instance, kept)
  local quiet = is_untold(room) and held * 2 or 0
  for i = 9, #ARGV, 2 do enter(room, instance, ARGV[i], ARGV[i + 1], i < 9 + quiet) end
  if #ARGV >= 9 then
    occupy(room, instance)
  else
    redis.call('SREM', occupied_by(instance), room)
  end
  return { digits(before), digits(last_change(room)) }
end

function operations.occupied(instance)
  return redis.call('SMEMBERS', occupied_by(instance))
end

-- Says that the instance is alive. Its entry in `boots` is: origin, milliseconds between heartbeats,
-- number of its connection.
-- `first` until the process has registered once: what the instance's name holds is then from a dead one.
function operations.register(instance, origin, heartbeat, threshold, first)
  local time, entry = now(), redis.call('HGET', boots, instance)
  local known = false
  if entry then
    local holder, interval, latest = string.match(entry, '^(%S+) (%d+) ?(%d*)')
    known = holder == origin
    if known and tonumber(latest) and tonumber(latest) > tonumber(connection) then return OUTDATED end
    if not known then
      local seen = tonumber(redis.call('ZSCORE', registry, instance) or 0)
      local grace = 2.5 * tonumber(interval or 0)
      if time - seen < grace then return { 'held', digits(time - seen), digits(grace) } end
    end
  end
  if not known and (entry or first == '1') and not clear(instance) then return { 'clearing' } end
  if redis.call('EXISTS', registry) == 0 then
    redis.call('SADD', told, '')
    redis.call('EXPIRE', told, math.ceil(threshold / 1000))
  end
  redis.call('HSET', boots, instance, origin .. ' ' .. heartbeat .. ' ' .. connection)
  redis.call('ZADD', registry, digits(time), instance)
  redis.call('EXPIRE', boots, ttl)
  redis.call('EXPIRE', registry, ttl)
  redis.call('EXPIRE', occupied_by(instance), ttl)
  local alive = redis.call('ZRANGEBYSCORE', registry, digits(time - threshold), '+inf')
  return { known and 'known' or 'new', unpack(alive) }
end

-- Removes one silent instance, or a part of it. Its `boots` entry goes first: if it comes back
-- meanwhile, its next register says 'new' and it restores everything.
function operations.reap(threshold)
  local silent = redis.call('ZRANGEBYSCORE', registry, '-inf', digits(now() - threshold), 'LIMIT', 0, 1)[1]
  if not silent then return '' end
  redis.call('HDEL', boots, silent)
  if clear(silent) then redis.call('ZREM', registry, silent) end
  return silent
end

-- Renews the expiry of the keys of some of the instance's rooms; returns the cursor for the rest.
function operations.renew(instance, cursor)
  local scanned = redis.call('SSCAN', occupied_by(instance), cursor, 'COUNT', ROOMS_PER_CALL)
  for _, room in ipairs(scanned[2]) do renew(room) end
  return scanned[1]
end

-- The instance goes; 1 when nothing of it is left.
function operations.unregister(instance, origin)
  local entry = redis.call('HGET', boots, instance)
  if entry and string.sub(entry, 1, #origin + 1) ~= origin .. ' ' then return 1 end
  if not clear(instance) then return 0 end
  redis.call('HDEL', boots, instance)
  redis.call('ZREM', registry, instance)
  return 1
end

-- The first command that the user of this connection has no right to, or nothing (Redis 7 and later).
function operations.probe()
  if not redis.acl_check_cmd then return '' end
  local entries, members, occupied = entries_of('probe'), members_of('probe'), occupied_by('probe')
  local needed = {
    { 'SUBSCRIBE', prefix .. 'rooms:probe' }, { 'SUBSCRIBE', prefix .. 'users:probe' },
    { 'SUBSCRIBE', prefix .. 'global' }, { 'SUBSCRIBE', prefix .. 'instances' }, { 'SUBSCRIBE', prefix .. 'lane:probe' },
    { 'UNSUBSCRIBE', prefix .. 'rooms:probe' },
    { 'PUBLISH', prefix .. 'rooms:probe', '' }, { 'PUBLISH', prefix .. 'users:probe', '' },
    { 'PUBLISH', prefix .. 'global', '' }, { 'PUBLISH', prefix .. 'instances', '' },
    { 'PUBLISH', prefix .. 'lane:probe', '' },
    { 'INCR', changes_of('probe') }, { 'GET', changes_of('probe') }, { 'SET', changes_of('probe'), '0' },
    { 'DEL', changes_of('probe') },
    { 'TIME' }, { 'PING' }, { 'EVALSHA', '0', '0' }, { 'PUBSUB', 'NUMSUB', prefix .. 'admin-instances' },
    { 'HSET', entries, '0', '0' }, { 'HGET', entries, '0' }, { 'HDEL', entries, '0' },
    { 'HGETALL', prefix .. 'bans' }, { 'HKEYS', entries }, { 'HVALS', entries }, { 'EXPIRE', entries, '1' },
    { 'HINCRBY', members, '0', '1' }, { 'HLEN', members },
    { 'SADD', occupied, '0' }, { 'SREM', occupied, '0' }, { 'SPOP', occupied, '1' },
    { 'SMEMBERS', occupied }, { 'SSCAN', occupied, '0' }, { 'EXISTS', occupied }, { 'UNLINK', occupied },
    { 'ZADD', registry, '0', '0' }, { 'ZREM', registry, '0' }, { 'ZSCORE', registry, '0' },
    { 'ZRANGEBYSCORE', registry, '0', '0' }, { 'HSET', boots, '0', '0' }, { 'HGET', boots, '0' },
    { 'SADD', told, '0' }, { 'SISMEMBER', told, '0' }, { 'EXISTS', told }, { 'EXPIRE', told, '1' },
  }
  for _, command in ipairs(needed) do
    if not redis.acl_check_cmd(unpack(command)) then
      return command[1] .. (command[2] and ' on ' .. command[2] or '')
    end
  end
  return ''
end

return operations[operation](ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11])
