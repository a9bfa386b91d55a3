-- The cluster's secret (false if there is none), then all bans that still hold, as user, ban, user, ban …; those that
-- have ended are taken out. KEYS: the hash `bans`, the string `admin-secret`.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all, answer = redis.call('HGETALL', KEYS[1]), {redis.call('GET', KEYS[2])}
for i = 1, #all, 2 do
  local ends = tonumber(string.match(all[i + 1], '^%d+')) or 0
  if ends <= now then
    -- A Redis that takes no writes can still be read.
    redis.pcall('HDEL', KEYS[1], all[i])
  else
    answer[#answer + 1] = all[i]
    answer[#answer + 1] = all[i + 1]
  end
end
return answer
