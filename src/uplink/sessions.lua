-- Which connections each user has, on every instance: what the limit of a user's connections counts. Every operation
-- is one call and therefore atomic, and says what shall be the case, so that it may be called again.
-- ARGV: prefix, operation, seconds until unrenewed keys expire, instance, its origin, number of the caller's connection,
-- then the operation's own. A user's connection is named by a space and digits, as many for each. Key names depend on the
-- data, so this does not run on a Redis Cluster.
local prefix, operation, ttl, instance, origin, connection = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local function sessions_of(name) return prefix .. 'sessions:' .. name end

local own = sessions_of(instance)

-- An instance whose link stands subscribes to a channel of its own: its connections count. Those of one that was
-- killed, or is cut off, do not, whatever is still written about them. Not told by PUBLISH, which counts other programs that
-- listen to everything (PSUBSCRIBE).
local function is_linked(name) return redis.call('PUBSUB', 'NUMSUB', prefix .. 'alive:' .. name)[2] > 0 end

-- Nobody is kept out, and no link is lost, because Redis has no memory for the count.
local function write(user, list)
  local answer = redis.pcall('HSET', own, user, list)
  return type(answer) == 'number'
end

-- Whether the instance has registered (presence.lua) over a later connection, or as another process: what is still on
-- its way over this one comes too late, behind what has been restored since.
local function is_outdated()
  local holder, latest = string.match(redis.call('HGET', prefix .. 'boots', instance) or '', '^(%S+) %d+ (%d+)$')
  return holder and (holder ~= origin or tonumber(latest) > tonumber(connection))
end

local operations = {}

-- 1 if the connection is one of at most `most`; else 0, and it is not counted.
function operations.attach(user, socket, most)
  local here = redis.call('HGET', own, user) or ''
  if string.find(here, socket, 1, true) then return 1 end
  local free = tonumber(most) - #here / #socket
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'registry', '-inf', '+inf')) do
    if free < 1 then return 0 end
    local there = name ~= instance and redis.call('HGET', sessions_of(name), user)
    if there and is_linked(name) then free = free - #there / #socket end
  end
  if free < 1 then return 0 end
  if write(user, here .. socket) then redis.call('EXPIRE', own, ttl) end
  return 1
end

function operations.detach(user, socket)
  local here = redis.call('HGET', own, user) or ''
  local from, to = string.find(here, socket, 1, true)
  if not from then return 0 end
  local rest = string.sub(here, 1, from - 1) .. string.sub(here, to + 1)
  if rest == '' or not write(user, rest) then redis.call('HDEL', own, user) end
  return 0
end

-- The instance begins anew.
function operations.reset()
  redis.call('UNLINK', own)
  return 0
end

-- The rest of ARGV is user, connections, user, connections …: what the instance has, whatever the limit.
function operations.restore()
  for i = 7, #ARGV, 2 do write(ARGV[i], ARGV[i + 1]) end
  redis.call('EXPIRE', own, ttl)
  return 0
end

function operations.renew()
  redis.call('EXPIRE', own, ttl)
  return 0
end

-- The first command that the user of this connection has no right to, or nothing (Redis 7 and later).
function operations.probe()
  if not redis.acl_check_cmd then return '' end
  local alive = prefix .. 'alive:' .. instance
  for _, command in ipairs({
    { 'SUBSCRIBE', alive }, { 'PUBSUB', 'NUMSUB', alive }, { 'HGET', own, '0' }, { 'HSET', own, '0', '0' },
    { 'HDEL', own, '0' }, { 'EXPIRE', own, '1' }, { 'UNLINK', own },
    { 'ZRANGEBYSCORE', prefix .. 'registry', '0', '0' }, { 'HGET', prefix .. 'boots', '0' },
  }) do
    if not redis.acl_check_cmd(unpack(command)) then
      return command[1] .. (command[2] and ' on ' .. command[2] or '')
    end
  end
  return ''
end

local changes = { attach = true, detach = true, reset = true, restore = true }
if changes[operation] and is_outdated() then return { err = 'OUTDATED the instance has another connection' } end
return operations[operation](ARGV[7], ARGV[8], ARGV[9])
