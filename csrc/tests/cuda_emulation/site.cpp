// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <string>
#include <vector>

#include "state.h"

namespace fgk::emulation::core {
namespace {

std::vector<const char*> files;

}  // namespace

KnownFile last_file{nullptr, 0};

void find_file(const char* file) {
  last_file.name = file;
  for (size_t i = 0; i < files.size(); ++i) {
    if (std::strcmp(files[i], file) == 0) {
      last_file.index = static_cast<uint32_t>(i);
      return;
    }
  }
  last_file.index = static_cast<uint32_t>(files.size());
  files.push_back(file);
}

Site site_of(uint32_t id) { return {files[id >> kLineBits], static_cast<int>(id & kLineMask)}; }

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string site_text(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

}  // namespace fgk::emulation::core
